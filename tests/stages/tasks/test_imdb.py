import pytest

from stages.errors import InputError
from stages.tasks.imdb import IMDB
from tests.stages.tasks.files import write_files


def test_the_original_folders_are_read_label_by_label(tmp_path):
    write_files(tmp_path / "train" / "pos", {"0_9.txt": "Wonderful.", "1_7.txt": "Fine."})
    write_files(tmp_path / "train" / "neg", {"0_2.txt": "Dreadful<br />film."})
    assert IMDB.read(tmp_path / "train", print) == [
        (("Dreadful<br />film.",), 0),
        (("Wonderful.",), 1),
        (("Fine.",), 1),
    ]


def test_a_folder_without_reviews_of_a_label_is_refused(tmp_path):
    write_files(tmp_path / "train" / "neg", {"0_2.txt": "Dreadful."})
    with pytest.raises(InputError, match=r"pos has no \.txt files; expected the reviews of aclImdb"):
        IMDB.read(tmp_path / "train", print)


def test_a_table_is_read_as_on_the_hub(tmp_path):
    write_files(tmp_path, {"test.csv": "text,label\nGreat,1\nAwful,0\n"})
    assert IMDB.read(tmp_path / "test.csv", print) == [(("Great",), 1), (("Awful",), 0)]
