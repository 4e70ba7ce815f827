"""What is wrong with a data set: every image file is scanned, every box checked, and every defect named."""
