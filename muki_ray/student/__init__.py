"""The student: its data, its loss, its training and its card."""
