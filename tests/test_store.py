"""Timings on disk: written as a whole, by any number of processes, read as what anybody may have written."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tritonbn import devices
from tritonbn.configs import Config, Work
from tritonbn.geometry import describe
from tritonbn.measured import store, timings
from tritonbn.measured.store import Store
from tritonbn.measured.timings import Entry, timing

DEVICE = devices.named("H100")


def work_on(*shape, dtype=torch.float16, mode="forward"):
    return Work(mode, describe(shape, 1, *[torch.empty(shape, device="meta").stride()] * 3), dtype)


WORK = work_on(32, 64, 56, 56)
KEY = timings.key_of(WORK, DEVICE)
FAST, SLOW, BROKEN = Config(1, 1, 1024), Config(1, 1, 2048), Config(1, 1, 4096, strategy="resident")
TIMINGS = [timing(FAST, 1e-5), timing(SLOW, 2e-5), timing(BROKEN, None, "OutOfResources: shared memory")]


def recorded(directory, timed=TIMINGS):
    found = Store(directory)
    found.record(KEY, WORK.geometry, timed)
    return found


def path_of(directory):
    (path,) = directory.glob("*.json")
    return path


def test_what_is_recorded_is_found_again(tmp_path):
    recorded(tmp_path)
    (run,) = Store(tmp_path).load(KEY).runs
    assert run.geometry == WORK.geometry
    assert run.timings == TIMINGS
    assert timings.seconds_of(run) == {timings.choice(FAST): 1e-5, timings.choice(SLOW): 2e-5}
    assert timings.failed(run) == {timings.choice(BROKEN)}
    assert path_of(tmp_path).name.startswith("forward-float16-")


def test_a_newer_timing_replaces_an_older_one(tmp_path):
    found = recorded(tmp_path)
    found.record(KEY, WORK.geometry, [timing(SLOW, 3e-5)])
    (run,) = Store(tmp_path).load(KEY).runs
    assert timings.seconds_of(run)[timings.choice(SLOW)] == 3e-5
    assert len(run.timings) == 3


def test_whoever_is_first_goes_before_where_that_is_asked(tmp_path):
    """Of each geometry by itself; a failure alone stands for no time."""
    recorded(tmp_path, [timing(BROKEN, None, "no luck")])
    mine, theirs = Store(tmp_path), Store(tmp_path)
    theirs.record(KEY, WORK.geometry, [timing(FAST, 3e-5)], if_first=True)
    mine.record(KEY, WORK.geometry, [timing(FAST, 1e-5), timing(SLOW, 2e-5)], if_first=True)
    other = work_on(31, 64, 56, 56)
    mine.record(KEY, other.geometry, [timing(SLOW, 4e-5)], if_first=True)
    for found in (mine, theirs, Store(tmp_path)):
        assert found.load(KEY).seconds(WORK.geometry) == {timings.choice(FAST): 3e-5}
        assert found.load(KEY).seconds(other.geometry) == {timings.choice(SLOW): 4e-5}
        assert timings.failed(found.load(KEY).exactly(WORK.geometry)) == {timings.choice(BROKEN)}


def test_keys_differ_in_all_that_matters():
    others = [
        timings.key_of(WORK, devices.named("A100")),
        timings.key_of(WORK, replace(DEVICE, sm_count=66)),
        timings.key_of(work_on(32, 64, 56, 56, dtype=torch.bfloat16), DEVICE),
        timings.key_of(work_on(32, 64, 56, 56, mode="backward"), DEVICE),
        timings.key_of(replace(WORK, epilogue="sign"), DEVICE),
        timings.key_of(work_on(32, 128, 56, 56), DEVICE),
        timings.key_of(work_on(64, 64, 56, 56), DEVICE),
        timings.key_of(work_on(32, 64, 55, 55), DEVICE),
        timings.key_of(work_on(32 * 56 * 56, 64), DEVICE),
        replace(KEY, triton="3.2.0"),
        replace(KEY, source="0" * 16),
    ]
    assert len({KEY, *others}) == len(others) + 1
    assert len({store.filename(key) for key in (KEY, *others)}) == len(others) + 1
    assert timings.key_of(work_on(31, 63, 56, 56), DEVICE) == KEY, "sizes that count as alike"


@given(st.integers(1, 2**40))
def test_sizes_are_rounded_up_by_a_quarter_at_most(size):
    rounded = timings.rounded_up(size)
    assert size <= rounded < 1.25 * size + 1
    assert timings.rounded_up(rounded) == rounded


def test_alike_geometries_stand_for_each_other_but_the_same_one_goes_before(tmp_path):
    other = work_on(31, 64, 56, 56)
    assert timings.key_of(other, DEVICE) == KEY
    found = recorded(tmp_path)
    assert found.load(KEY).seconds(other.geometry) == {timings.choice(FAST): 1e-5, timings.choice(SLOW): 2e-5}
    found.record(KEY, other.geometry, [timing(SLOW, 1e-6)])
    assert found.load(KEY).seconds(other.geometry) == {timings.choice(SLOW): 1e-6}
    assert found.load(KEY).exactly(WORK.geometry).timings == TIMINGS


def test_a_project_goes_before_the_user(tmp_path):
    project, user = tmp_path / "project", tmp_path / "user"
    recorded(user)
    recorded(project, [timing(SLOW, 5e-6)])
    (run,) = Store(project, user).load(KEY).runs
    assert timings.seconds_of(run) == {timings.choice(FAST): 1e-5, timings.choice(SLOW): 5e-6}
    Store(project, user).record(KEY, WORK.geometry, [timing(FAST, 7e-6)])
    assert timings.seconds_of(Store(user).load(KEY).runs[0])[timings.choice(FAST)] == 1e-5, "only the first is written"


def test_the_environment_names_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "project"))
    store.store_in.cache_clear()
    assert store.current().directories == [tmp_path / "project", tmp_path / "user" / "tritonbn" / "timings"]
    monkeypatch.setenv(store.VARIABLE, "~/project")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.current().directories[0] == tmp_path / "project"
    monkeypatch.delenv(store.VARIABLE)
    assert store.current().directories == [tmp_path / "user" / "tritonbn" / "timings"]
    store.store_in.cache_clear()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_fuzzed_files_are_set_aside(tmp_path, data):
    """Any bytes: an entry is read as it was, or the file is set aside with a warning; nothing else is believed."""
    whole = timings.encode(Entry(KEY, [timings.Run(WORK.geometry, list(TIMINGS))]))
    kind = data.draw(st.sampled_from(["any", "cut", "changed"]))
    if kind == "any":
        content = data.draw(st.binary(max_size=200))
    elif kind == "cut":
        content = whole[: data.draw(st.integers(0, len(whole) - 2))]
    else:
        content = bytearray(whole)
        for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
            content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / store.filename(KEY)
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        entry = Store(tmp_path).load(KEY)
    assert entry.key == KEY
    if caught:
        assert "no file of timings, and is set aside" in str(caught[0].message)
        assert not entry.runs
        assert not path.exists()
        assert path.with_suffix(".damaged").read_bytes() == content
    else:
        for run in entry.runs:
            assert all(t.seconds is None or 0 < t.seconds < 3600 for t in run.timings)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e | {"format": 2}, "expected format 1, got 2"),
        (lambda e: e | {"key": e["key"] | {"gpu": "another"}}, "expected timings of Key"),
        (lambda e: e["runs"][0]["timings"][0].update(seconds=-1.0) or e, "greater|> 0"),
        (lambda e: e["runs"][0]["timings"][0].update(seconds="1") or e, "Expected"),
        (lambda e: e["runs"][0]["timings"][0]["config"].update(block_c=[1]) or e, "Expected"),
        (lambda e: e["runs"][0]["geometry"].pop("inner") and e, "missing required field"),
        (lambda e: e.pop("key") and e, "missing required field"),
        (lambda e: [e], "Expected"),
        (lambda e: json.loads("[" * 900 + "]" * 900), "."),
    ],
)
def test_what_is_no_entry_of_ours_is_set_aside(tmp_path, change, reason):
    recorded(tmp_path)
    path = path_of(tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    with pytest.warns(RuntimeWarning, match=f"no file of timings, and is set aside: .*({reason})"):
        assert not Store(tmp_path).load(KEY).runs
    recorded(tmp_path)
    assert Store(tmp_path).load(KEY).runs[0].timings == TIMINGS, "and written anew"


def test_nothing_can_be_written(tmp_path):
    """Below a file there is no directory: as in a home that is missing or read-only."""
    (tmp_path / "file").write_text("")
    found = Store(tmp_path / "file" / "timings")
    with pytest.warns(RuntimeWarning, match="timings are not kept on disk") as caught:
        [found.record(KEY, WORK.geometry, timed) for timed in (TIMINGS, [timing(SLOW, 3e-5)])]
    assert len(caught) == 1
    assert timings.seconds_of(found.load(KEY).runs[0])[timings.choice(SLOW)] == 3e-5, "kept as long as the process"
    assert [entry.key for entry in found.entries()] == [KEY]


def test_a_read_only_directory(tmp_path):
    recorded(tmp_path)
    found = Store(tmp_path)
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.warns(RuntimeWarning, match="timings are not kept on disk"):
            found.record(KEY, WORK.geometry, [timing(SLOW, 3e-5)])
        assert timings.seconds_of(found.load(KEY).runs[0])[timings.choice(SLOW)] == 3e-5
    finally:
        tmp_path.chmod(0o700)


def test_without_a_home(monkeypatch):
    """The user's directory is then "~/...", which is no place to write to."""
    found = Store(Path("~/.cache/tritonbn"))
    found.record(KEY, WORK.geometry, TIMINGS)
    assert found.load(KEY).runs[0].timings == TIMINGS
    assert not Path("~").exists()
    with pytest.raises(OSError, match="expected an absolute path"):
        found.write(Entry(KEY))


def test_export_and_import(tmp_path):
    shared, mine, theirs = tmp_path / "shared.json", tmp_path / "mine", tmp_path / "theirs"
    recorded(mine)
    other = work_on(8, 16, 32, 32)
    Store(mine).record(timings.key_of(other, DEVICE), other.geometry, [timing(FAST, 1e-6)])
    assert Store(mine).export(shared) == 2
    recorded(theirs, [timing(SLOW, 9e-5)])
    assert Store(theirs).take(shared) == 2
    (run,) = Store(theirs).load(KEY).runs
    assert timings.seconds_of(run) == {timings.choice(FAST): 1e-5, timings.choice(SLOW): 2e-5}
    assert {entry.key for entry in Store(theirs).entries()} == {KEY, timings.key_of(other, DEVICE)}


def test_a_damaged_import_changes_nothing(tmp_path):
    recorded(tmp_path / "mine")
    shared = tmp_path / "shared.json"
    Store(tmp_path / "mine").export(shared)
    content = json.loads(shared.read_bytes())
    shared.write_text(json.dumps([*content, content[0] | {"format": 7}]))
    with pytest.raises(ValueError, match="expected format 1, got 7"):
        Store(tmp_path / "theirs").take(shared)
    assert not list((tmp_path / "theirs").glob("*"))
    assert shared.exists(), "a file that the user names is left alone"


WRITER = """
import sys
from pathlib import Path
from tritonbn.measured.store import Store
from test_store import KEY, WORK, Config, timing
directory, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for number in range(first, first + count):
    Store(directory).record(KEY, WORK.geometry, [timing(Config(1, 1, 1024, tiles_per_chunk=number), 1e-5)])
    print(number, flush=True)
"""


def writer(directory, first, count):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "TRITON_INTERPRET": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(first), str(count)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.thorough
def test_four_processes_write_at_once(tmp_path):
    processes = [writer(tmp_path, 100 * number + 1, 40) for number in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    for process in processes:
        process.stdout.close()
    (run,) = Store(tmp_path).load(KEY).runs
    found = {t.config["tiles_per_chunk"] for t in run.timings}
    assert found == {100 * number + k for number in range(4) for k in range(1, 41)}


def test_a_process_that_is_killed_loses_nothing_it_wrote(tmp_path):
    process = writer(tmp_path, 1, 10**6)
    written = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    written += map(int, process.stdout.read().split())
    process.stdout.close()
    process.wait()
    (run,) = Store(tmp_path).load(KEY).runs
    found = {t.config["tiles_per_chunk"] for t in run.timings}
    assert found >= set(written)
    started = time.monotonic()
    recorded(tmp_path)
    assert time.monotonic() - started < store.PATIENCE, "the lock went with its holder"
