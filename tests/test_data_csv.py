"""CSV: which columns are understood as what, what is refused by line, and that what was understood is said."""

from pathlib import Path

import numpy as np
import pytest

from data.open import open_data
from data.readers.csv_columns import understand
from data.records import DataError
from tests.conftest import REAL_DATA, needs_real_data
from tests.test_data_readers import write_image


def write_csv(root, text, name="boxes.csv", images=("a", "b"), folder="images", encoding="utf-8"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding=encoding)
    for stem in images:
        write_image(root / folder / f"{stem}.jpg")


def found(data):
    """{file name: [(class, box)]} of all splits."""
    return {
        record.name.rpartition("/")[2]: [
            (data.classes[label - 1], *box)
            for label, box in zip(record.labels.tolist(), record.boxes.round(9).tolist(), strict=True)
        ]
        for records in data.splits.values()
        for record in records
    }


def mistakes(data):
    """The defects, but for a box around the whole image, which is right in small tests."""
    return [defect for defect in data.defects if defect.kind != "box-whole-image"]


TWO = {"a.jpg": [("cat", 1, 2, 11, 7)], "b.jpg": [("dog", 0, 0, 40, 30)]}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("images/a.jpg,1,2,11,7,cat\nimages/b.jpg,0,0,40,30,dog\n", TWO),  # retinanet
        ("/home/x/images/b.jpg,,,,,\n/home/x/images/a.jpg,1,2,11,7,cat\n", {"a.jpg": TWO["a.jpg"], "b.jpg": []}),
        ("image_path,xmin,ymin,xmax,ymax,label\na.jpg,1,2,11,7,cat\nb.jpg,0,0,40,30,dog\n", TWO),  # DeepForest
        (  # TensorFlow, Roboflow
            "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,40,30,cat,1,2,11,7\nb.jpg,40,30,dog,0,0,40,30\n",
            TWO,
        ),
        (  # Kaggle: one class, no suffix, four numbers in a field
            'image_id,width,height,bbox,source\na,40,30,"[1.0, 2.0, 10.0, 5.0]",usask\nb,40,30,,usask\n',
            {"a.jpg": [("object", 1, 2, 11, 7)], "b.jpg": []},
        ),
        ("image_id,x_min,x_max,y_min,y_max,class_id,class_name\na,1,11,2,7,0,cat\nb,0,40,0,30,1,dog\n", TWO),
        ("image,x,y,w,h,label\na.jpg,1,2,10,5,cat\nb.jpg,0,0,40,30,dog\n", TWO),
        ("image,x,y,width,height,label\na.jpg,1,2,10,5,cat\nb.jpg,0,0,40,30,dog\n", TWO),
        ("image,width,height,x,y,w,h,label\na.jpg,40,30,1,2,10,5,cat\nb.jpg,40,30,0,0,40,30,dog\n", TWO),
        ("image,xmin,ymin,width,height,label\na.jpg,1,2,10,5,cat\nb.jpg,0,0,40,30,dog\n", TWO),
        ("name,label,x_center,y_center,width,height\na.jpg,cat,6,4.5,10,5\nb.jpg,dog,20,15,40,30\n", TWO),
        (  # Make Sense, without and with a header
            "cat,1,2,10,5,a.jpg,40,30\ndog,0,0,40,30,b.jpg,40,30\n",
            TWO,
        ),
        (
            "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
            "cat,1,2,10,5,a.jpg,40,30\ndog,0,0,40,30,b.jpg,40,30\n",
            TWO,
        ),
        (  # OpenImages: fractions, groups
            "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
            "a,xclick,cat,1,0.025,0.275,0.06666666666667,0.23333333333333,0,0\nb,xclick,dog,1,0,1,0,1,0,1\n",
            TWO,
        ),
        (  # AutoML: fractions, a set, empty columns
            "TRAIN,gs://bucket/a.jpg,cat,0.025,0.06666666666667,,,0.275,0.23333333333333,,\n"
            "VALIDATION,gs://bucket/b.jpg,dog,0,0,1,0,1,1,0,1\n",
            TWO,
        ),
        (  # pandas' index, semicolons, decimal commas, CRLF
            ";Image Path;X Min;Y Min;X Max;Y Max;Label\r\n0;a.jpg;1,0;2,0;11,0;7,0;cat\r\n1;b.jpg;0;0;40;30;dog\r\n",
            TWO,
        ),
        ("filename\tX1\tY1\tX2\tY2\tcategory\na.jpg\t1\t2\t11\t7\tcat\n\nb.jpg\t0\t0\t40\t30\tdog\n", TWO),
        ("file,left,top,right,bottom,cell_type\na.jpg,1,2,11,7,cat\nb.jpg,0,0,40,30,dog\n", TWO),
    ],
)
def test_the_common_kinds_are_understood(tmp_path, text, wanted):
    write_csv(tmp_path, text, encoding="utf-8-sig")
    for where in (tmp_path, tmp_path / "boxes.csv"):
        data = open_data(where)
        assert (data.format, mistakes(data)) == ("csv", [])
        assert found(data) == wanted
        assert "columns: image" in "\n".join(data.describe())


def understood(header):
    return understand(header.split(","))


def test_groups_are_crowds_and_the_understanding_is_said():
    columns = understood("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf")
    assert columns.describe() == (
        "columns: image ImageID, box XMin YMin XMax YMax (corners), class LabelName, crowds IsGroupOf"
    )
    kaggle = understood("image_id,width,height,bbox")
    assert kaggle.describe() == (
        "columns: image image_id, box bbox (left, top, width, height), one class, object, image size width height"
    )
    headless = understood("a.jpg,1,2,3,4,cat")
    assert headless.describe() == (
        "columns: image column 1, box column 2 column 3 column 4 column 5 (corners), class column 6"
        " (there is no header)"
    )
    assert understood("MID,DisplayName") is None and understood("/m/01g317,Person") is None
    with pytest.raises(DataError, match="Several columns may be the class: cell_class, my_type"):
        understood("image,xmin,ymin,xmax,ymax,cell_class,my_type")


def test_splits_by_column_by_name_and_by_folder(tmp_path):
    write_csv(tmp_path / "one", "set,image,x1,y1,x2,y2,class\nTrain,a.jpg,1,2,11,7,cat\nvalid,b.jpg,0,0,40,30,dog\n")
    head = "image,x1,y1,x2,y2,class\n"
    write_csv(tmp_path / "two", head + "a.jpg,1,2,11,7,cat\n", "train_labels.csv", ["a"])
    write_csv(tmp_path / "two", head + "b.jpg,0,0,40,30,dog\n", "val_labels.csv", ["b"])
    write_csv(tmp_path / "two", "MID,DisplayName\n/m/01,cat\n", "class-descriptions.csv", [])
    write_csv(tmp_path / "three" / "train", head + "a.jpg,1,2,11,7,cat\n", "_annotations.csv", ["a"], ".")
    write_csv(tmp_path / "three" / "valid", head + "b.jpg,0,0,40,30,dog\n", "_annotations.csv", ["b"], ".")
    for name in ("one", "two", "three"):
        data = open_data(tmp_path / name)
        assert {split: len(records) for split, records in data.splits.items()} == {"train": 1, "val": 1}
        assert (found(data), data.classes, mistakes(data)) == (TWO, ("cat", "dog"), [])
        assert data.split_rule == "the data set's own splits"
    with pytest.raises(DataError, match=r"holds several CSV folders: one, three, two"):
        open_data(tmp_path)
    write_csv(tmp_path / "three" / "val", head, "_annotations.csv", [])
    with pytest.raises(DataError, match="three holds several CSV folders: train, val, valid"):
        open_data(tmp_path / "three")
    write_csv(tmp_path / "two", head, "more_val.csv", [])
    with pytest.raises(DataError, match="several CSV files for one split"):
        open_data(tmp_path / "two")
    write_csv(tmp_path / "four", head, "first.csv", [])
    write_csv(tmp_path / "four", head, "second.csv", [])
    with pytest.raises(DataError, match=r"several CSV files of boxes: first\.csv, second\.csv"):
        open_data(tmp_path / "four")


def test_images_without_a_split_are_train_and_counted(tmp_path):
    write_csv(
        tmp_path, "split,image,x1,y1,x2,y2,class\n,a.jpg,1,2,11,7,cat\n,a.jpg,1,2,9,7,cat\nval,b.jpg,0,0,40,30,dog\n"
    )
    data = open_data(tmp_path)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 1, "val": 1}
    assert "boxes.csv: 1 images have no split there, and are train" in data.notes


def test_excels_unicode_text_is_read(tmp_path):
    text = "image\tx1\ty1\tx2\ty2\tclass\na.jpg\t1\t2\t11\t7\tcat\nb.jpg\t0\t0\t40\t30\tdog\n"
    write_csv(tmp_path, text, name="boxes.tsv", encoding="utf-16")
    assert found(open_data(tmp_path)) == TWO


def test_a_classes_csv_numbers_the_classes_and_others_are_refused(tmp_path):
    write_csv(tmp_path, "a.jpg,1,2,11,7,dog\nb.jpg,1,2,11,7,cat\n")
    (tmp_path / "classes.csv").write_text("dog,0\ncat,1\ncow,2\n")
    assert open_data(tmp_path).classes == ("dog", "cat", "cow")
    (tmp_path / "classes.csv").write_text("dog,0\n")
    with pytest.raises(
        DataError, match=r"1 unknown-class: train: boxes\.csv, line 2: class 'cat' is not in classes\.csv"
    ):
        open_data(tmp_path)


def test_class_numbers_come_in_order_of_value(tmp_path):
    rows = "".join(f"a.jpg,1,2,11,7,{number}\n" for number in (10, 2, 1))
    write_csv(tmp_path, "image,xmin,ymin,xmax,ymax,class\n" + rows + "b.jpg,,,,,\n")
    assert open_data(tmp_path).classes == ("1", "2", "10")


def test_bad_rows_are_refused_by_line_and_told_together(tmp_path):
    text = (
        "image,xmin,ymin,xmax,ymax,class,split\n"
        "a.jpg,1,2,11,7,cat,train\n"
        "a.jpg,1,2,x,7,cat,train\n"
        "a.jpg,1,2,,7,cat,train\n"
        "b.jpg,1,2\n"
        "b.jpg,1,2,11,7,,train\n"
        ",1,2,11,7,cat,train\n"
        "b.jpg,1,2,11,7,cat,holdout\n"
        "a.jpg,1,2,11,7,cat,test\n"
        "nowhere.jpg,1,2,11,7,cat,train\n"
        "./images/a.jpg,1,2,11,7,cat,train\n"
    )
    write_csv(tmp_path, text)
    data = open_data(tmp_path, refuse=False)
    assert [(d.kind, d.object) for d in data.defects] == [
        ("row-malformed", "line 3"),
        ("row-malformed", "line 4"),
        ("row-malformed", "line 5"),
        ("row-malformed", "line 6"),
        ("row-malformed", "line 7"),
        ("split-unknown", "line 8"),
        ("row-in-other-split", "line 9"),
        ("image-listed-twice", "line 11"),
        ("image-missing", None),
    ]
    assert all(defect.refused for defect in data.defects)
    with pytest.raises(DataError, match=r"(?s)5 row-malformed: .*1 split-unknown: .*1 image-missing: .*nowhere\.jpg"):
        open_data(tmp_path)


def test_a_pixel_box_among_fractions_is_refused_and_a_declared_size_is_compared(tmp_path):
    head = "image,width,height,xmin,ymin,xmax,ymax,class\n"
    write_csv(tmp_path, head + "a.jpg,40,30,0.1,0.1,0.5,0.5,cat\nb.jpg,40,30,0,0,1,1,cat\nb.jpg,40,30,1,2,11,7,cat\n")
    with pytest.raises(DataError, match=r"1 coordinates-in-pixels: .*boxes\.csv line 4 \(cat\): its box is in pixels"):
        open_data(tmp_path)
    write_csv(tmp_path, head + "a.jpg,80,60,1,2,11,7,cat\nb.jpg,40,30,1,2,11,7,cat\n")
    assert [(d.kind, d.file) for d in open_data(tmp_path).defects] == [("size-differs", "images/a.jpg")]


def test_images_are_found_by_tail_and_name_but_never_one_of_two(tmp_path):
    write_csv(tmp_path, "image,xmin,ymin,xmax,ymax,class\nA.JPEG,1,2,11,7,cat\nc,1,2,11,7,cat\n", images=[])
    write_image(tmp_path / "x" / "y" / "c.png")
    (tmp_path / "x" / "y" / "c.png").rename(tmp_path / "x" / "y" / "c.PNG")
    write_image(tmp_path / "x" / "a.jpeg")
    assert found(open_data(tmp_path)).keys() == {"a.jpeg", "c.PNG"}
    write_image(tmp_path / "z" / "c.png")
    with pytest.raises(
        DataError,
        match=r"1 image-missing: .*: c: there is no such file in .*; which of .*x/y/c\.PNG, .*z/c\.png is it\?",
    ):
        open_data(tmp_path)


def test_what_is_no_table_of_boxes_says_so(tmp_path):
    write_csv(tmp_path, "when,what\n1,2\n", images=[])
    with pytest.raises(DataError, match=r"boxes\.csv names no columns .*first line is 'when,what'\. .*: image,xmin"):
        open_data(tmp_path)
    with pytest.raises(DataError, match="names no columns of an image and a box"):
        open_data(tmp_path / "boxes.csv")
    write_csv(tmp_path, "image,xmin,ymin,xmax,ymax,class\na.jpg,,,,,\n", images=["a"])
    with pytest.raises(DataError, match="no row has a box with a class"):
        open_data(tmp_path)
    write_csv(tmp_path, "image,xmin,ymin,xmax,ymax,class\nä.jpg,1,2,3,4,cat\n", images=[], encoding="latin-1")
    with pytest.raises(DataError, match="is no CSV in UTF-8"):
        open_data(tmp_path)


@needs_real_data
def test_bccds_csv_has_the_boxes_of_its_xml():
    folder = Path(REAL_DATA) / "bccd"
    table, xml = found(open_data(folder / "test.csv")), found(open_data(folder))
    assert table.keys() == xml.keys() and len(xml) == 364
    for name, objects in xml.items():
        assert sorted(table[name]) == sorted(objects)
    assert sum(map(len, table.values())) == 4886
    np.testing.assert_array_equal(table["BloodImage_00000.jpg"][0][1:], [260, 177, 491, 376])


def test_fractions_are_decided_table_by_table(tmp_path):
    head = "image,xmin,ymin,xmax,ymax,class\n"
    write_csv(tmp_path, head + "a.jpg,1,2,11,7,cat\n", name="train.csv")
    write_csv(tmp_path, head + "b.jpg,0.25,0.2,0.5,0.4,cat\n", name="val.csv")
    assert found(open_data(tmp_path)) == {"a.jpg": [("cat", 1, 2, 11, 7)], "b.jpg": [("cat", 10, 6, 20, 12)]}


def test_the_four_corners_of_a_quadrilateral_are_not_two(tmp_path):
    write_csv(tmp_path, "image,x1,y1,x2,y2,x3,y3,x4,y4,class\na.jpg,2,1,8,3,7,7,1,5,cat\nb.jpg,2,1,8,3,7,7,1,5,cat\n")
    with pytest.raises(DataError, match="names no columns of an image and a box"):
        open_data(tmp_path)


def test_rows_that_are_all_wrong_are_named_by_the_first(tmp_path):
    write_csv(tmp_path, "image,xmin,ymin,xmax,ymax,class\na.jpg,10px,2,11,7,cat\n")
    with pytest.raises(DataError, match=r"no row has a box .*boxes\.csv, line 2: its box is not four numbers"):
        open_data(tmp_path)
