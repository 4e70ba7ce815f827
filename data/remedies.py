"""What to do about each kind of defect, for whoever reads the report: data/told.py prints it under the kind."""

SPLIT_AGAIN = "say which image is in which split: --splits FILE"
ANNOTATE = "annotate it, or write an annotation file without objects if it shows none"
DRAW = "draw it anew in the annotation tool, or delete it"
ONE_OF_TWO = "delete one, if they are one object"
AS_MEANT = "nothing, if it is meant so"
EXPORT = "export the annotations again in their tool, or mend the file"

OF_ANNOTATIONS = {
    "annotation-id-twice": "give each an id of its own; delete one, if they are one annotation",
    "annotation-missing": ANNOTATE,
    "annotation-unreadable": EXPORT,
    "box-of-mask": "nothing, or write the boxes into the file",
    "class-missing": "name its class, or delete it",
    "coordinates-in-pixels": "divide x by the width of the image and y by its height, or export again as fractions",
    "file-name-differs": "nothing, if that is the image; else rename the image or its annotation file",
    "folder-unread": "annotate its images, name the files by --train-annotations, --val-annotations …, or move it away",
    "image-id-twice": "give each image an id of its own, in its annotations too",
    "image-listed-twice": "list the image once, with all its boxes",
    "image-without-annotation": ANNOTATE,
    "image-without-file-name": EXPORT,
    "image-without-id": EXPORT,
    "label-file-missing": "nothing, if it shows no object; else annotate it",
    "label-file-shared": "give each image a name, and a text file, of its own",
    "orphan-annotation": "put its image back (into the list of a split, if there are lists), or delete it",
    "placeholder-category": "nothing",
    "row-in-other-split": "give all rows of an image one split",
    "row-malformed": "mend the row, or delete it",
    "split-missing": "put it there, or take it out of the file",
    "split-unknown": "write train, val or test",
    "split-without-annotations": "put the text files there to score it, or nothing",
    "unknown-class": "correct the class, or add it where the data set names its classes",
    "unused-class": "nothing, or delete it from the file",
}
OF_IMAGES = {
    "duplicate-image": "delete one, with its boxes (the wrong ones, if they differ): what is there twice weighs double",
    "exif-invalid": AS_MEANT,
    "exif-turned": "look whether its boxes fit; if not, annotate the image as viewers show it",
    "group-in-two-splits": f"move its images into one split, or {SPLIT_AGAIN}",
    "image-dark": "stretch its brightness in the file, or delete the image if it shows nothing",
    "image-elongated": "cut it into several images, with their boxes",
    "image-huge": "make it smaller, or cut it into several images, with their boxes",
    "image-in-two-splits": "delete it from one of the splits: val and test must not show what was trained on",
    "image-missing": "put the file there, or delete what is annotated of it",
    "image-unreadable": "get the file again, or delete it and what is annotated of it",
    "image-without-objects": "nothing, if it shows none",
    "near-duplicate-image": "look at both; delete one, if it adds nothing",
    "near-duplicate-in-two-splits": f"look at both; if they show one scene, move one of them, or {SPLIT_AGAIN}",
    "size-differs": "look whether its boxes fit; if not, scale them, or annotate the image again",
    **{
        f"image-{kind}": AS_MEANT
        for kind in ("greyscale", "alpha", "palette", "1-bit", "12-bit", "16-bit", "32-bit", "float", "CMYK", "Lab")
    },
    **{f"image-{kind}": AS_MEANT for kind in ("YCbCr", "several-frames", "damaged-EXIF")},
    "image-misnamed": "nothing, or give the file the suffix of its content",
}
OF_BOXES = {
    "box-duplicate": ONE_OF_TWO,
    "box-malformed": DRAW,
    "box-near-duplicate": f"look at both; {ONE_OF_TWO}",
    "box-no-size": DRAW,
    "box-not-finite": DRAW,
    "box-outside": DRAW,
    "box-over-edge": "nothing, if clipping is right (--on-defect drop leaves such boxes out); else draw it anew",
    "box-tiny": "look at it; delete it, if it is a slip of the mouse",
    "box-whole-image": "look at it; delete it, if it marks the image and no object",
    "boxes-implausible": "export the boxes again, or mend the file so that they fit their images",
    "class-unknown": "correct the class, or add it where the data set names its classes",
    "label-suspect": "look at it; correct the class, if it is another's",
    "labels-conflict": "look at it; delete the box whose class is wrong",
}
OF_CLASSES = {
    "class-balance-differs": f"nothing, if the split is meant so; else {SPLIT_AGAIN}",
    "class-imbalance": "annotate more of it, or read its AP with care",
    "class-not-in-split": f"nothing, if it need not be scored; else {SPLIT_AGAIN}",
    "class-not-in-train": f"annotate some in train, or {SPLIT_AGAIN}",
    "class-without-boxes": "take it out of the class names, or annotate some",
    "classes-alike": "if they are one class, rename one of them in all annotations",
    "split-without-boxes": f"annotate its images, or {SPLIT_AGAIN}",
}
REMEDIES = OF_ANNOTATIONS | OF_IMAGES | OF_BOXES | OF_CLASSES
