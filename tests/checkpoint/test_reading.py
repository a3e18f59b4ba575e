import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mask2former.checkpoint import read_state_dict
from mask2former.errors import ConfigError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}


class Evil:
    """Pickled, it runs a command when loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class EvilByEval(Evil):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


def write(path, content, kind):
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif kind == "zip":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def arrays():
    return {name: tensor.numpy() for name, tensor in WEIGHTS.items()}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "published.pkl"
    content = {"model": arrays(), "__author__": "third_party", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = read_state_dict(path)
    assert checkpoint.author == "third_party"
    torch.testing.assert_close(checkpoint.state_dict, WEIGHTS)
    checkpoint.state_dict["a.weight"].zero_()  # writable


def test_pickles_of_numpy_1(tmp_path):
    """numpy 2 writes numpy._core where numpy 1 wrote numpy.core."""
    modern = pickle.dumps({"model": arrays()}, protocol=2)
    assert b"numpy._core" in modern
    path = tmp_path / "old.pkl"
    path.write_bytes(modern.replace(b"numpy._core", b"numpy.core"))
    torch.testing.assert_close(read_state_dict(path).state_dict, WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 5])
def test_orders_and_shapes_of_arrays(tmp_path, protocol):
    array = np.arange(24, dtype="f2").reshape(2, 3, 4)
    content = {
        "transposed": array.transpose(2, 0, 1),
        "fortran": np.asfortranarray(array),
        "empty": np.zeros((0, 3), "i8"),
        "bool": np.array([True, False]),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_state_dict(tmp_path / "x.pkl").state_dict
    for name, expected in content.items():
        np.testing.assert_array_equal(read[name].numpy(), expected)
        assert read[name].numpy().dtype == expected.dtype


def test_pickles_of_python_2(tmp_path):
    """Detectron's: strings are bytes."""
    (tmp_path / "x.pkl").write_bytes(
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0tbs."
    )
    assert read_state_dict(tmp_path / "x.pkl").state_dict["a"].tolist() == [1, -2]


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_files_of_torch(tmp_path, kind, key):
    state = OrderedDict(WEIGHTS)
    state._metadata = OrderedDict({"": {"version": 1}})
    content = state if key is None else {key: state, "iteration": 3, "class_names": ["nut"]}
    checkpoint = read_state_dict(write(tmp_path / "x.pth", content, kind))
    torch.testing.assert_close(checkpoint.state_dict, WEIGHTS)
    assert checkpoint.class_names == (None if key is None else ["nut"])


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(WEIGHTS, tmp_path / "x.safetensors")
    torch.testing.assert_close(read_state_dict(tmp_path / "x.safetensors").state_dict, WEIGHTS)


def test_the_content_decides_not_the_suffix(tmp_path):
    path = write(tmp_path / "x.pkl", WEIGHTS, "zip")
    torch.testing.assert_close(read_state_dict(path).state_dict, WEIGHTS)


@pytest.mark.parametrize("evil", [Evil, EvilByEval])
@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("place", ["whole", "nested"])
def test_nothing_in_a_file_runs(tmp_path, evil, kind, place):
    marker = tmp_path / "ran"
    payload = evil(marker)
    content = payload if place == "whole" else {"model": {**arrays(), "b": payload}}
    path = write(tmp_path / "x.pkl", content, kind)
    with pytest.raises(ConfigError, match=r"x\.pkl is refused or damaged"):
        read_state_dict(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(payload))  # the payload works where it is not refused
    assert marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_a_refusal_names_what_would_run(tmp_path, kind):
    path = write(tmp_path / "x.pkl", Evil(tmp_path / "ran"), kind)
    with pytest.raises(ConfigError, match=r"it would run (posix|nt)\.system") as e:
        read_state_dict(path)
    assert "weights_only" not in str(e.value)  # torch advises to switch the check off


def test_whole_models_are_refused(tmp_path):
    path = write(tmp_path / "x.pth", torch.nn.Linear(1, 1), "zip")
    with pytest.raises(ConfigError, match=r"it would run torch\.nn\.modules\.linear\.Linear\)"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "name", ["builtins getattr", "builtins eval", "numpy load", "numpy ndarray.tofile", "os system"]
)
def test_only_the_names_of_arrays_are_known(tmp_path, name):
    module, name = name.split()
    strings = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + b"".join(strings) + b"\x93.")
    with pytest.raises(ConfigError, match=rf"it would run {module}\.{name}"):
        read_state_dict(tmp_path / "x.pkl")


@pytest.mark.parametrize("dtype", ["O", [("field", "O")], "U3", "M8[s]"])
def test_arrays_are_of_numbers(tmp_path, dtype):
    """numpy itself, given such a type with a forged state, takes bytes for addresses."""
    path = write(tmp_path / "x.pkl", {"a": np.zeros(1, dtype)}, "pickle")
    with pytest.raises(ConfigError, match=r"holds an array of '[OVUM]\d+', not of numbers"):
        read_state_dict(path)


def damaged():
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    return {
        "empty": b"",
        "text": b"not weights at all, but a text",
        "truncated zip": buffer.getvalue()[:200],
        "truncated pickle": pickle.dumps({"model": arrays()})[:60],
        "no dict": pickle.dumps([1, 2]),
        "no tensors": pickle.dumps({"model": {"a": "text"}}),
        "nothing": pickle.dumps({"model": {}}),
        "safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{broken",
    }


@pytest.mark.parametrize("kind", damaged())
def test_damaged_files_are_named(tmp_path, kind):
    (tmp_path / "x.pth").write_bytes(damaged()[kind])
    with pytest.raises(ConfigError, match=r"x\.pth (is refused or damaged|cannot be loaded)") as e:
        read_state_dict(tmp_path / "x.pth")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("thing_ids", [[0, 2], [-1], [0]])
def test_things_are_among_the_classes(tmp_path, thing_ids):
    names = {} if thing_ids == [0] else {"class_names": ["nut", "table"]}
    content = {"model": WEIGHTS, "thing_ids": thing_ids} | names
    path = write(tmp_path / "x.pth", content, "zip")
    with pytest.raises(ConfigError, match=r"x\.pth.*its thing_ids, .* are not all indices"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_damage_anywhere_is_one_line(tmp_path, kind):
    path = write(tmp_path / "x.pth", {"model": arrays() if kind == "pickle" else WEIGHTS}, kind)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    failures = 0
    for _ in range(150):
        damaged = whole[: random.integers(1, len(whole) + 1)].copy()
        damaged[random.integers(len(damaged), size=3)] = random.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            read_state_dict(path)
        except ConfigError as error:
            failures += 1
            assert "x.pth" in str(error) and "\n" not in str(error)
    assert failures > 100


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.pth does not exist; give the path"):
        read_state_dict(tmp_path / "nowhere.pth")


def test_scalars_and_byte_orders(tmp_path):
    content = {"big": np.arange(3, dtype=">f4"), "scalar": np.float64(2.5)}
    checkpoint = read_state_dict(write(tmp_path / "x.pkl", content, "pickle"))
    assert checkpoint.state_dict["big"].tolist() == [0, 1, 2]
    assert checkpoint.state_dict["scalar"].item() == 2.5
