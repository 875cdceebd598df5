"""The CSVs of docs/results/: what they keep, and that any damage is one line with a remedy."""

import csv
import io
from pathlib import Path

import pytest

from docs.published.study import SHOWN, Study, read
from moebench.errors import RecordError
from tests.report.test_results_page import fake_study


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The CSV of a study."""
    return fake_study(tmp_path_factory.mktemp("runs")).to_csv()


def test_a_csv_keeps_all_of_a_study_and_no_path(runs: Path) -> None:
    study = fake_study(runs)
    text = study.to_csv()
    again = Study.of_csv(text)
    assert again.to_csv() == text
    assert "secret" not in text
    assert " data=folder data.path=DIR" in again.effects[0]["command"]
    assert [(run["arm"], run["seed"]) for run in again.runs[:2]] == [("micro", 0), ("micro", 1)]
    assert again.runs[0]["science"] == study.runs[0]["science"]
    assert again.runs[0]["metrics"].keys() & {*SHOWN} == {
        name for name in study.runs[0]["metrics"] if name in SHOWN
    }


def test_a_path_is_not_published() -> None:
    study = Study({"question": "Is it in /home/someone/data?"})
    with pytest.raises(RecordError, match="holds a path, which is not published"):
        study.to_csv()
    text = Study({"question": "Is it in DIR?"}).to_csv().replace("DIR", "/home/someone/data")
    with pytest.raises(RecordError, match="holds a path, which is not published"):
        Study.of_csv(text)


@pytest.mark.parametrize("keep", [0, 100, 3000, 0.5, -3])
def test_a_csv_that_is_cut_off_is_named(text: str, tmp_path: Path, keep: float) -> None:
    end = int(keep * len(text)) if isinstance(keep, float) else keep
    path = tmp_path / "scope-0a1b2c.csv"
    path.write_text(text[:end])
    with pytest.raises(RecordError, match=r"scope-0a1b2c.csv: .* make it again from its runs"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "column"),
    [("run", "seed"), ("run", "valid/bits_per_byte"), ("effect", "seeds"), ("row", "arm")],
)
def test_a_csv_with_a_damaged_cell_is_named(
    text: str, tmp_path: Path, kind: str, column: str
) -> None:
    """A heading, the first row of kind `row`, too."""
    header, *rows = csv.reader(io.StringIO(text))
    row = next(row for row in (list(header), *rows) if row[0] == kind)
    row[header.index(column)] = "abc"
    if kind == "row":
        header = row
    damaged = io.StringIO()
    csv.writer(damaged).writerows([header, *rows])
    (tmp_path / "scope-0a1b2c.csv").write_text(damaged.getvalue())
    with pytest.raises(RecordError, match=r"scope-0a1b2c.csv: .* make it again from its runs"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"about,,question,", b'about,,question,"', r"line \d+: is cut off, or no row"),
        (b",scope", b',sc"ope', r"line \d+: is not as it was written"),
        (b"What?", b"Wh\0at?", r"line \d+: text: holds more than one line of text"),
        (b"What?", b"Wh\xffat?", ".*can't decode byte 0xff"),
        (b",level,", b",levels,", "lacks the column 'level'"),
        (b",0.05,", b",5,", r"line \d+: level 5: must be a number from 0 to 1"),
        (b"setting,,train.steps", b"setting,,train.stops", r"line \d+: lacks train.steps"),
        (b",,scope", b",,abc", "study abc: is not one of conf/study"),
    ],
)
def test_damage_is_one_line_with_the_file_and_a_remedy(
    text: str, tmp_path: Path, old: bytes, new: bytes, told: str
) -> None:
    damaged = text.encode().replace(old, new, 1)
    assert damaged != text.encode()
    path = tmp_path / "scope-0a1b2c.csv"
    path.write_bytes(damaged)
    with pytest.raises(RecordError, match=f"scope-0a1b2c.csv: {told}.*; git checkout") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_digest_that_reads_as_a_number_stays_a_digest(text: str) -> None:
    """`12e3456789` would be infinite."""
    text = text.replace("0123abcd", "12e3456789")
    assert Study.of_csv(text).settings["data"] == "12e3456789"
    assert Study.of_csv(text).to_csv() == text
