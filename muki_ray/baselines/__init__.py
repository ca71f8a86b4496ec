"""Methods to compare MUKI with: their targets (`targets.py`), losses and feature modules. Reimplemented from formulas."""
