"""OmniEdit on parquet shards of its schema: the choice, the fetch, the samples, the labels."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import CASES, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from abplib.__main__ import main
from abplib.core import store
from abplib.core.errors import AbpError
from abplib.core.images import load_image
from abplib.samples import omniedit
from abplib.samples.base import SampleSet
from abplib.samples.omniedit import Manifest, OmniEdit, choose, fetch

TASKS = ("swap", "swap", "swap", "removal", "style")
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("omni_edit_id", pa.string()), ("task", pa.string()), ("src_img", PICTURE),
     ("edited_img", PICTURE), ("edited_prompt_list", pa.list_(pa.string())),
     ("sc_reasoning", pa.string()), ("pq_reasoning", pa.string()), ("height", pa.int64()),
     ("width", pa.int64()), ("sc_score_1", pa.int64()), ("sc_score_2", pa.int64()),
     ("pq_score", pa.int64()), ("o_score", pa.float64())]
)  # fmt: skip


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise(16, 12, seed).save(file, format="png")
    return file.getvalue()


COMFY = (CASES / "03-png-large-workflow-text/comfy.png").read_bytes()
"""Field case 03: a picture with a megabyte of compressed text."""


def record(number: int) -> dict[str, object]:
    """Rows 3, 13, ... have no picture that can be read; 7, 17, ... no instruction."""
    picture = {3: b"no picture", 4: COMFY}.get(number % 10, png(number))
    return {
        "omni_edit_id": f"task_{number:03d}",
        "task": TASKS[number % 5],
        "src_img": {"bytes": picture, "path": f"{number}.png"},
        "edited_img": {"bytes": b"not read", "path": "x.png"},
        "edited_prompt_list": ["", " "] if number % 10 == 7 else ["", f"swap {number}", "other"],
    }


def write_shards(folder: Path, n_shards: int = 4, per_shard: int = 15) -> str:
    folder.mkdir(parents=True)
    for shard in range(n_shards):
        rows = [record(shard * per_shard + row) for row in range(per_shard)]
        table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(table, folder / f"train-{shard:05d}-of-00004.parquet", row_group_size=4)
    return str(folder)


@pytest.fixture
def location(tmp_path: Path) -> str:
    return write_shards(tmp_path / "hub")


def quiet(_line: str) -> None:
    pass


def test_the_choice_depends_on_seed_and_ids_alone(location: str, tmp_path: Path) -> None:
    chosen = choose(location, n=30, seed=1)
    assert choose(location, n=30, seed=1).fingerprint == chosen.fingerprint
    assert choose(location, n=30, seed=2).fingerprint != chosen.fingerprint
    assert chosen.rows["task"].value_counts().to_dict() == {"swap": 18, "removal": 6, "style": 6}
    whole = choose(location, n=50, seed=1)  # of all shards, however they are cut
    regrouped = write_shards(tmp_path / "regrouped", n_shards=2, per_shard=30)
    assert choose(regrouped, n=50, seed=1).fingerprint == whole.fingerprint


def test_no_more_shards_are_read_than_hold_the_rows(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    index = omniedit._index

    def spy(place: str, name: str, kept: Path | None) -> object:
        opened.append(name)
        return index(place, name, kept)

    monkeypatch.setattr(omniedit, "_index", spy)
    chosen = choose(location, n=20)
    assert len(opened) == 2
    assert set(chosen.rows["shard"]) == set(opened)


def test_rows_without_an_id_of_their_own_are_counted(tmp_path: Path) -> None:
    rows = [record(0), record(0), {**record(1), "omni_edit_id": None}, {**record(2), "task": ""}]
    (tmp_path / "bad").mkdir()
    table = pa.Table.from_pylist([*rows, record(5)], SCHEMA)
    pq.write_table(table, tmp_path / "bad" / "train-0.parquet")
    chosen = choose(str(tmp_path / "bad"), n=2)
    assert chosen.recipe["unusable"] == {"no_id": 1, "no_task": 1, "repeated_id": 1}
    assert set(chosen.rows["id"]) == {"task_000", "task_005"}
    with pytest.raises(AbpError, match="3 rows are asked for and the shards hold 2 usable"):
        choose(str(tmp_path / "bad"), n=3)


def test_a_manifest_is_kept_with_its_hash(location: str, tmp_path: Path) -> None:
    chosen = choose(location, n=10)
    chosen.save(tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet").rows.equals(chosen.rows)
    rows, recipe = store.read_parquet(tmp_path / "m.parquet")
    store.write_parquet(tmp_path / "m.parquet", rows.iloc[::-1], recipe)
    with pytest.raises(AbpError, match="choose them anew"):
        Manifest.load(tmp_path / "m.parquet")


def test_fetched_rows_are_samples_in_the_order_of_the_manifest(
    location: str, tmp_path: Path
) -> None:
    chosen = choose(location, n=40)
    fetch(chosen, tmp_path / "rows", quiet)
    samples = OmniEdit(tmp_path / "rows")
    assert isinstance(samples, SampleSet)
    numbers = [int(name[-3:]) for name in chosen.rows["id"]]
    good = [number for number in numbers if number % 10 not in (3, 7)]
    assert [samples[i].id for i in range(len(samples))] == [f"task_{n:03d}" for n in good]
    assert samples[4].instruction == f"swap {good[4]}"
    assert samples[4].facts["task"] == TASKS[good[4] % 5]
    for sample, number in zip((samples[i] for i in range(len(good))), good, strict=True):
        shown = load_image(COMFY) if number % 10 == 4 else noise(16, 12, number)
        assert sample.image.tobytes() == shown.tobytes()
    assert samples.unusable == {
        "unreadable_image": sum(n % 10 == 3 for n in numbers),
        "no_instruction": sum(n % 10 == 7 for n in numbers),
    }
    with pytest.raises(IndexError):
        samples[len(samples)]


def test_a_stopped_choice_goes_on(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, shard = [], omniedit._shard

    def killed(place: str, name: str) -> object:
        opened.append(name)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return shard(place, name)

    monkeypatch.setattr(omniedit, "_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        choose(location, n=50, kept=tmp_path)
    chosen = choose(location, n=50, kept=tmp_path)
    assert len(opened) == 5  # four shards, the third twice
    assert chosen.rows.equals(choose(location, n=50).rows)


def test_a_stopped_fetch_goes_on(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, read, rows = choose(location, n=50), [], omniedit._rows

    def killed(place: str, name: str, wanted: set[int]) -> object:
        read.append(name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return rows(place, name, wanted)

    monkeypatch.setattr(omniedit, "_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(chosen, tmp_path / "rows", quiet)
    with pytest.raises(AbpError, match="run `abp omniedit`"):
        len(OmniEdit(tmp_path / "rows"))
    fetch(chosen, tmp_path / "rows", quiet)
    assert len(read) == 5  # four shards, the third twice
    fetch(chosen, tmp_path / "whole", quiet)
    stopped, whole = OmniEdit(tmp_path / "rows"), OmniEdit(tmp_path / "whole")
    assert stopped.fingerprint == whole.fingerprint
    with pytest.raises(AbpError, match="holds another choice"):
        fetch(choose(location, n=40, seed=5), tmp_path / "rows", quiet)


def test_the_command(location: str, tmp_path: Path) -> None:
    out = str(tmp_path / "rows")
    arguments = ["omniedit", "--out", out, "--location", location, "-n", "12"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(main, arguments)
    assert again.stdout.splitlines() == done.stdout.splitlines()[-2:]
    other = CliRunner().invoke(main, [*arguments, "--seed", "3"])
    assert other.exit_code == 2 and "holds another choice of rows" in other.stderr


Spoiling = Callable[[Path], None]


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Spoiling:
    def spoil(folder: Path) -> None:
        path = next(folder.iterdir())
        pq.write_table(change(pq.read_table(path)), path)

    return spoil


def without(column: str) -> Spoiling:
    return rewritten(lambda table: table.drop_columns(column))


def retyped(column: str, values: pa.Array) -> Spoiling:
    return rewritten(
        lambda table: table.set_column(table.schema.get_field_index(column), column, values)
    )


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no shards"),
        (lambda folder: (folder / "train-0.parquet").write_text("x"), "missing or damaged"),
        (
            lambda folder: pq.write_table(pa.table({"a": [1]}), folder / "train-0.parquet"),
            "lacks the column omni_edit_id",
        ),
        (without("edited_prompt_list"), "lacks the column edited_prompt_list"),
        (without("src_img"), "lacks the column src_img"),
        # field case 23: the text would be taken for a list of letters
        (
            retyped("edited_prompt_list", pa.array(["swap"] * 15)),
            "prompt_list .* holds string values",
        ),
        # field case 25
        (retyped("omni_edit_id", pa.array(range(15))), "omni_edit_id .* holds int64 values"),
        (retyped("src_img", pa.array([b"x"] * 15)), "src_img .* holds binary values"),
    ],
)
def test_bad_shards_are_one_sentence(tmp_path: Path, break_it: Spoiling, said: str) -> None:
    folder = Path(write_shards(tmp_path / "hub", n_shards=1))
    break_it(folder)
    with pytest.raises(AbpError, match=said):
        choose(str(folder), n=16)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "omni_edit_id": st.none() | st.text(max_size=3),
                "task": st.none() | st.sampled_from(TASKS),
                "src_img": st.none()
                | st.fixed_dictionaries(
                    {"bytes": st.none() | st.binary(max_size=9) | st.just(png(0))}
                ),
                "edited_prompt_list": st.none()
                | st.lists(st.none() | st.text(max_size=4), max_size=3),
            }
        ),
        max_size=6,
    ),
    damage=st.none() | st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)),
)
def test_any_shard_is_read_whole_or_refused(
    rows: list[dict[str, Any]], damage: tuple[float, bytes] | None
) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "hub"
        folder.mkdir()
        path = folder / "train-0.parquet"
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
        if damage:
            raw = bytearray(path.read_bytes())
            start = int(damage[0] * len(raw))
            raw[start : start + len(damage[1])] = damage[1]
            path.write_bytes(raw)
        try:
            chosen = choose(str(folder), n=1)
            chosen = choose(str(folder), n=len(rows) - sum(chosen.recipe["unusable"].values()))
            fetch(chosen, Path(place) / "rows", quiet)
            samples = OmniEdit(Path(place) / "rows")
            read = [samples[index] for index in range(len(samples))]
        except AbpError as error:
            assert "\n" not in str(error)
        else:
            unusable = sum(chosen.recipe["unusable"].values()) + sum(samples.unusable.values())
            assert damage or len(read) + unusable == len(rows)
            assert all(sample.instruction.strip() for sample in read)
