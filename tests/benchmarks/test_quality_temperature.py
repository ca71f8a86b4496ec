import numpy as np
from quality_temperature import expected_labels

from muki_ray.uncertainty import TeacherEvidence


def test_what_is_expected_by_hand() -> None:
    sampled = TeacherEvidence(np.zeros((2, 2)), mc_probs=np.array([[0.9, 0.1], [0.5, 0.5]]))
    plain = TeacherEvidence(np.log([[0.2, 0.8], [0.6, 0.4]]))
    share = np.array([[0.75, 0.25], [0.0, 1.0]])
    found = expected_labels(share, [sampled, plain], [np.array([0, 2]), np.array([1, 2])], 3)
    np.testing.assert_allclose(found, [[0.675, 0.25 * 0.2, 0.075 + 0.25 * 0.8], [0, 0.6, 0.4]])
