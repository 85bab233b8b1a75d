"""Pictures and pages of finished runs: answers drawn on images, curves, one self-contained report."""
