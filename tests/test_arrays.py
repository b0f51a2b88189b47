"""Arrays in files: each form is read and mapped, and what is broken or no array is refused with what to do."""

import io
import zipfile

import numpy as np
import pytest
import torch

from vqnotes.diagnosis import arrays
from vqnotes.diagnosis.arrays import array_at, path_and_rest

X = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_form_gives_the_same_array(here):
    np.save("a.npy", X)
    np.save("big.npy", X.astype(">f4"))
    np.savez("a.npz", z=X)
    np.savez_compressed("two.npz", z=X, **{"e:k": X + 1})
    X.tofile("a.bin")
    X.astype("<u2").tofile("u.bin")
    (X > 3).tofile("mask.bin")
    for name in ("a.npy", "big.npy", "a.npz", "a.npz:z", "two.npz:z", "a.bin:float32:-1,4", "u.bin:uint16:6,4"):
        found = array_at(name)
        assert (np.asarray(found) == X).all() and found.shape == X.shape, name
        torch.as_tensor(found)  # of a byte order and a kind that tensors have
    assert (array_at("two.npz:e:k") == X + 1).all() and (array_at("a.bin:float32") == X.ravel()).all()
    assert (array_at("a.bin", "float32") == X.ravel()).all() and array_at("mask.bin:bool").sum() == 20
    assert (array_at(str(here / "a.bin") + ":float32:2,3,-1") == X.reshape(2, 3, 4)).all()


def test_what_can_be_mapped_is_mapped_and_no_file_changes(here):
    np.save("a.npy", X)
    X.tofile("a.bin")
    for name in ("a.npy", "a.bin:float32:-1,4"):
        found = array_at(name)
        assert isinstance(found, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 7
        assert (np.asarray(array_at(name)) == X).all()


def test_colons_may_be_in_a_name(here):
    try:
        np.save("run:3.npy", X)
    except OSError:
        pytest.skip("this file system has no colons in names")
    assert path_and_rest("run:3.npy")[1] == "" and (array_at("run:3.npy") == X).all()
    np.savez("run:3.npz", z=X)
    assert path_and_rest("run:3.npz:z")[1] == "z"


def saved(content, kind=np.save):
    """The bytes of a file."""
    file = io.BytesIO()
    kind(file, content)
    return file.getvalue()


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "no array")
    return file.getvalue()


@pytest.mark.parametrize(
    "name, content, given, says",
    [
        ("a.npy", saved(X)[:150], "a.npy", "broken .npy file, or holds no numbers"),
        ("a.npy", saved(X)[:20], "a.npy", "broken .npy file"),
        ("a.npy", saved(np.array([{}])), "a.npy", "broken .npy file, or holds no numbers"),
        ("a.npy", saved(X), "a.npy:z", "holds one array: leave out 'z'"),
        ("a.npz", saved(X, np.savez)[:200], "a.npz", "broken .npz file"),
        ("a.npz", saved(X, np.savez).replace(X.tobytes(), X[::-1].tobytes()), "a.npz", "arr_0 in it is broken"),
        ("a.npz", saved(np.array([{}]), np.savez), "a.npz", "arr_0 in it is broken, or holds no numbers"),
        ("a.npz", saved(X, np.savez), "a.npz:y", "no array 'y': write a.npz:KEY, with KEY one of arr_0"),
        ("a.zip", zipped(), "a.zip", "word/document.xml in it is no array: in Python, np.save"),
        ("a.zip", zipped(), "a.zip:word/document.xml", "is no array"),
        ("a.pt", saved({"z": torch.ones(2)}, lambda file, z: torch.save(z, file)), "a.pt", "pickle.* np.save"),
        ("a.model", saved({"z": torch.ones(2)}, lambda file, z: torch.save(z, file)), "a.model:z", "no array 'z'"),
        ("a.bin", X.tobytes(), "a.bin", "say what it holds, as in a.bin:float32"),
        ("a.bin", X.tobytes(), "a.bin:float33", "'float33' is no dtype"),
        ("a.bin", X.tobytes(), "a.bin:float32:x", "'float32:x' is no dtype of NumPy, with a shape"),
        ("a.bin", X.tobytes(), "a.bin:float32:-1,5", "holds 24 numbers, which have no shape -1,5"),
        ("a.bin", X.tobytes(), "a.bin:float32:-1,-1", "have no shape -1,-1"),
        ("a.bin", X.tobytes()[:5], "a.bin:float32", r"has 5 bytes, .* no whole number of float32 \(4 bytes\)"),
        ("a.bin", b"", "a.bin:float32", "has 0 bytes"),
        ("a.bin", X.tobytes(), "a.bin:object", "no whole number of object"),
    ],
)
def test_what_is_no_array_is_refused(here, name, content, given, says):
    (here / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as refused:
        array_at(given)
    assert name in str(refused.value)


def test_a_dtype_is_for_raw_files(here):
    np.save("a.npy", X)
    X.tofile("a.bin")
    with pytest.raises(ValueError, match="a.npy says its dtype itself: leave out uint16"):
        array_at("a.npy", "uint16")
    with pytest.raises(ValueError, match="two dtypes, float32 and uint16"):
        array_at("a.bin:float32", "uint16")
    for wrong in ("nothing.npy", "nothing.npz:z", ".", ""):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            array_at(wrong)


def test_several_arrays_need_a_key(here):
    np.savez("a.npz", z=X, codes=X)
    np.savez("none.npz")
    with pytest.raises(ValueError, match="a.npz holds 2 arrays: write a.npz:KEY, with KEY one of z, codes"):
        array_at("a.npz")
    with pytest.raises(ValueError, match="none.npz"):
        array_at("none.npz")


def test_safetensors_without_the_package_says_so(here, monkeypatch):
    (here / "a.safetensors").write_bytes(b"12345678{}")
    monkeypatch.setattr(arrays, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="takes the package safetensors, which is not installed"):
        array_at("a.safetensors:z")


def test_safetensors_are_read_by_their_package(here):
    library = pytest.importorskip("safetensors.torch", reason="needs the extra `test`, or safetensors")
    library.save_file({"z": torch.from_numpy(X), "codes": torch.ones(2, 4, dtype=torch.bfloat16)}, "a.safetensors")
    assert (array_at("a.safetensors:z").numpy() == X).all()
    assert array_at("a.safetensors:codes").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="holds 2 arrays: write a.safetensors:KEY, with KEY one of"):
        array_at("a.safetensors")
    with pytest.raises(ValueError, match="says its dtype itself"):
        array_at("a.safetensors:z", "float32")
    (here / "b.safetensors").write_bytes((here / "a.safetensors").read_bytes()[:40])
    with pytest.raises(ValueError, match="broken .safetensors file"):
        array_at("b.safetensors:z")
