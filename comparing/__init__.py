"""What compare.py is made of: which runs, on which images, what differs, and how it is told."""
