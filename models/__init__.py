"""The detectors, and the life of their checkpoints. Code is files here; models/faster_rcnn/ is an artefact."""
