"""Reports of finished runs: answers drawn on images, figures, self-contained HTML pages."""
