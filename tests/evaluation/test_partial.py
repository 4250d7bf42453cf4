"""An evaluation interrupted and taken up again is one evaluation."""

from __future__ import annotations

import json
import math
import os
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from evaluate_worker import FIELDS
from torch import Tensor

from dvae_fast import files, functional
from dvae_fast.corruptions import Masking
from dvae_fast.evaluation import arrays, estimate_log_likelihood, partial
from dvae_fast.evaluation.partial import PartialResults, fingerprint, read_settings
from dvae_fast.files import CheckpointError
from dvae_fast.models import LatentVariableModel, make_model

if TYPE_CHECKING:
    from pathlib import Path

    from dvae_fast.evaluation import EvaluationProgress, LikelihoodEstimate

N, K, D = 11, 23, 9


def _model(seed: int = 0) -> LatentVariableModel:
    torch.manual_seed(seed)
    return make_model("iwae", D, 3, (8, 6)).double()


def _data() -> Tensor:
    return torch.rand(N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _same(a: LikelihoodEstimate, b: LikelihoodEstimate) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), equal_nan=True)


def _interrupted(path: Path, after: int, **options: Any) -> None:
    def stop(progress: EvaluationProgress) -> None:
        if progress.examples >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_log_likelihood(
            _model(), _data(), K, batch_size=3, partial=path, progress=stop, **options
        )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_goes_on_where_it_stopped(
    batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "partial.npz"
    _interrupted(path, 5, seed=4)
    evaluated: set[int] = set()
    original = functional.sample_latent

    def recorded(mean: Tensor, *args: Any, first_example: int, **rest: Any) -> Any:
        evaluated.update(range(first_example, first_example + len(mean)))
        return original(mean, *args, first_example=first_example, **rest)

    monkeypatch.setattr(functional, "sample_latent", recorded)
    estimate = estimate_log_likelihood(
        _model(), _data(), K, batch_size=batch_size, partial=path, seed=4
    )
    assert evaluated == set(range(6, N))
    monkeypatch.undo()
    _same(estimate, estimate_log_likelihood(_model(), _data(), K, seed=4))
    # All of it is in the file now.
    monkeypatch.setattr(
        functional, "sample_latent", lambda *_, **__: pytest.fail("evaluated again")
    )
    _same(estimate, estimate_log_likelihood(_model(), _data(), K, partial=path, seed=4))


def test_the_seed_need_not_be_known(tmp_path: Path) -> None:
    path = tmp_path / "partial.npz"
    _interrupted(path, 3)
    settings = read_settings(path)
    assert settings is not None
    estimate = estimate_log_likelihood(_model(), _data(), K, partial=path)
    assert estimate.seed == settings["seed"]
    _same(estimate, estimate_log_likelihood(_model(), _data(), K, seed=estimate.seed))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 5}, "seed"),
        ({"k": K + 1}, "k"),
        ({"tolerance": 0.1, "max_k": K}, "tolerance"),
        ({"curve": (1, 2)}, "curve"),
        ({"x": _data() * 0.5}, "data"),
        ({"model": _model(1)}, "parameters"),
    ],
)
def test_of_another_evaluation(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "partial.npz"
    _interrupted(path, 5, seed=4)
    before = path.read_bytes()
    given = {"model": _model(), "x": _data(), "k": K, "seed": 4, "partial": path, **changes}
    with pytest.raises(ValueError, match=f"the {what} of .*partial.npz is (.*, not|another)"):
        estimate_log_likelihood(**given)
    assert path.read_bytes() == before


def test_other_functions_with_the_same_parameters(tmp_path: Path) -> None:
    """Plain functions hide their parameters, and a module's do not tell its activation."""
    path, model = tmp_path / "partial.npz", _model()

    def shifted(z: Tensor) -> Any:
        return model.decode(z) + 0.1

    for first, second in (
        ((model.encode, model.decode), (model.encode, shifted)),
        (nn_pair(torch.nn.Tanh()), nn_pair(torch.nn.ReLU())),
    ):
        path.unlink(missing_ok=True)
        estimate_log_likelihood(first, _data(), K, seed=4, partial=path)
        with pytest.raises(ValueError, match=r"the (outputs|parameters) of .* is another"):
            estimate_log_likelihood(second, _data(), K, seed=4, partial=path)
        estimate_log_likelihood(first, _data(), K, seed=4, partial=path)


def nn_pair(activation: torch.nn.Module) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    encoder = torch.nn.Linear(D, 6).double()
    decode = torch.nn.Sequential(torch.nn.Linear(3, 5), activation, torch.nn.Linear(5, D)).double()
    return lambda x: encoder(x).chunk(2, -1), decode


def test_another_scale(tmp_path: Path) -> None:
    path, pair = tmp_path / "partial.npz", nn_pair(torch.nn.Tanh())
    options: dict[str, Any] = {"seed": 4, "partial": path, "likelihood": "gaussian"}
    estimate_log_likelihood(pair, _data(), K, scale=1.0, **options)
    with pytest.raises(ValueError, match=r"the scale of .* is another"):
        estimate_log_likelihood(pair, _data(), K, scale=0.5, **options)


def test_another_corruption_per_pixel(tmp_path: Path) -> None:
    path = tmp_path / "partial.npz"
    options: dict[str, Any] = {"seed": 4, "partial": path, "proposal": "mixture", "copies": 3}
    rates = torch.linspace(0.1, 0.9, D)
    estimate_log_likelihood(_model(), _data(), K, corruption=Masking(rates), **options)
    with pytest.raises(ValueError, match="the corruption of"):
        estimate_log_likelihood(_model(), _data(), K, corruption=Masking(rates.flip(0)), **options)


def test_a_full_disk_loses_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: bytes) -> None:
        raise CheckpointError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(arrays, "write_atomically", full)
    monkeypatch.setattr(partial, "_EVERY", 0.0)
    with pytest.warns(RuntimeWarning, match="partial results are not kept: .*No space left"):
        kept = estimate_log_likelihood(_model(), _data(), K, seed=4, partial=tmp_path / "p.npz")
    _same(kept, estimate_log_likelihood(_model(), _data(), K, seed=4))
    with (
        pytest.warns(RuntimeWarning, match="partial results are not kept"),
        pytest.raises(ZeroDivisionError),
    ):
        estimate_log_likelihood(
            _model(), _data(), K, partial=tmp_path / "p.npz", progress=lambda _: 1 // 0
        )


def test_nan_is_kept(tmp_path: Path) -> None:
    x = _data()
    x[1] = math.nan
    path = tmp_path / "partial.npz"
    first = estimate_log_likelihood(_model(), x, K, partial=path, seed=4)
    _same(first, estimate_log_likelihood(_model(), x, K, partial=path, seed=4))
    assert first.non_finite == 1


def test_damaged_or_out_of_reach(tmp_path: Path) -> None:
    path = tmp_path / "partial.npz"
    for content in (b"", b"PK\x03\x04 no archive", b"hello"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"partial\.npz does not hold partial results"):
            estimate_log_likelihood(_model(), _data(), K, partial=path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(CheckpointError, match="does not hold partial results"):
        read_settings(path.with_suffix(".npy"))
    np.savez(path, something=np.zeros(3))
    with pytest.raises(CheckpointError, match="does not hold partial results"):
        read_settings(path)
    with pytest.raises(CheckpointError, match="cannot write"):
        estimate_log_likelihood(_model(), _data(), K, partial=os.devnull + "/partial.npz")
    assert read_settings(tmp_path / "none.npz") is None


def _changed(path: Path, change: Any) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("elbo"), "it has no elbo"),
        (lambda a: a.pop("curve_groups"), "it has no curve_groups"),
        (lambda a: a.pop("_done"), "it has no _done$"),
        (lambda a: a.pop("_settings"), "it has no _settings$"),
        (lambda a: a.update(colour=a["elbo"]), "it has colour, which is not known"),
        (lambda a: a.update(ess=a["ess"].astype(np.float32)), "its ess is torch.float32"),
        (lambda a: a.update(elbo=a["elbo"].astype(">f8")), "byte order"),
        (lambda a: a.update(curve=a["curve"][:, :1]), r"its curve is .* of shape \(1,\)"),
        (lambda a: a.update(elbo=a["elbo"][:3]), r"elbo has shape \(3,\), of 11"),
        (lambda a: a.update(elbo=np.float64(0)), r"elbo has shape \(\)"),
        (lambda a: a.update(elbo=a["elbo"].astype(str)), "elbo.npy holds <U"),
        (lambda a: a.update(_done=a["_done"].astype(int)), "_done is int64"),
        (lambda a: a.update(_settings=np.arange(3)), "_settings.npy holds int64"),
    ],
)
def test_a_field_that_is_missing_or_other_is_told(
    change: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "partial.npz"
    _interrupted(path, 5, seed=4)
    _changed(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        estimate_log_likelihood(_model(), _data(), K, seed=4, partial=path)
    assert "\n" not in str(caught.value)


def test_a_header_that_asks_for_more_than_there_is(tmp_path: Path) -> None:
    """A shape of 10¹² numbers, and an archive that is compressed, are told from the headers."""
    path = tmp_path / "partial.npz"
    _interrupted(path, 5, seed=4)
    good = path.read_bytes()
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    giant = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(80)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("giant.npy", giant)
    with pytest.raises(CheckpointError, match=r"giant\.npy is not as large as its header says"):
        estimate_log_likelihood(_model(), _data(), K, seed=4, partial=path)
    path.write_bytes(good)
    with np.load(path) as file:
        np.savez_compressed(path, **dict(file))
    with pytest.raises(CheckpointError, match=r"\.npy is compressed"):
        estimate_log_likelihood(_model(), _data(), K, seed=4, partial=path)
    deep = json.dumps({"seed": 4})[:-1] + ', "x": ' + "[" * 100_000
    path.write_bytes(good)
    _changed(path, lambda a: a.update(_settings=np.array(deep)))
    with pytest.raises(CheckpointError, match="does not hold partial results"):
        read_settings(path)


def _taken(path: Path, n: int) -> tuple[object, ...]:
    """All that a reader has of a file."""
    results = PartialResults(n, path, {"seed": 1, "k": K})
    fields = [(name, values.numpy().tobytes()) for name, values in results.fields.items()]
    settings = json.dumps(read_settings(path), sort_keys=True)
    return settings, results.done.numpy().tobytes(), *sorted(fields)


def test_a_flipped_bit_is_told_or_harmless(tmp_path: Path) -> None:
    """One in each byte of headers and directory, and 100 of anywhere."""
    n, path = 1000, tmp_path / "partial.npz"
    results = PartialResults(n, path, {"seed": 1, "k": K})
    g = torch.Generator().manual_seed(1)
    results.put(0, {"value": torch.randn(n - 2, generator=g), "curve": torch.rand(n - 2, 2)})
    results.save()
    clean, whole = _taken(path, n), path.read_bytes()
    assert clean == _taken(path, n)
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
        headers = [member.header_offset for member in archive.infolist()]
    # A member's own header with its name, at most 60 bytes, and numpy's of 128.
    where = [at for h in headers for at in range(h, h + 60 + 128)]
    where += range(directory, len(whole))
    generator = np.random.default_rng(n)
    where += generator.integers(len(whole), size=100).tolist()
    told = 0
    for at in where:
        bit = int(generator.integers(8))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found = _taken(path, n)
        except (CheckpointError, ValueError):
            told += 1
        else:
            same = found == clean  # not in the assertion, which would print all of it
            assert same, f"bit {bit} of byte {at} changes what is read"
    assert told > len(where) / 2


def test_written_at_intervals_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "partial.npz"
    writings = []
    original = files.write_atomically
    monkeypatch.setattr(
        arrays, "write_atomically", lambda p, data: (writings.append(p), original(p, data))
    )
    estimate_log_likelihood(_model(), _data(), K, batch_size=1, partial=path)
    assert writings == [path]
    path.unlink()
    monkeypatch.setattr(partial, "_EVERY", 0.0)
    estimate_log_likelihood(_model(), _data(), K, batch_size=1, partial=path)
    assert len(writings) == 1 + N
    assert [p.name for p in tmp_path.iterdir()] == ["partial.npz"]


def test_the_files_of_several_processes_are_one(tmp_path: Path) -> None:
    path = tmp_path / "partial.npz"
    for process, rows in ((0, [0, 4]), (1, [2])):
        results = PartialResults(6, path, {"seed": 1}, process)
        for row in rows:
            results.put(row, {"value": torch.tensor([[float(row), 1.0]])})
        results.save()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["partial.npz.0", "partial.npz.1"]
    both = PartialResults(6, path, {"seed": 1})
    assert both.done.tolist() == [True, False, True, False, True, False]
    assert both.fields["value"][:, 0].tolist() == [0, 0, 2, 0, 4, 0]
    assert both.batches(2) == [(1, 2), (3, 4), (5, 6)]
    assert PartialResults(5, None, {}).batches(2) == [(0, 2), (2, 4), (4, 5)]


def test_a_name_with_brackets(tmp_path: Path) -> None:
    path = tmp_path / "run[1].npz"
    results = PartialResults(2, path, {"seed": 1}, 0)
    results.put(1, {"value": torch.ones(1)})
    results.save()
    assert partial.partial_exists(path)
    assert PartialResults(2, path, {"seed": 1}).done.tolist() == [False, True]
    assert partial.remove_partial(path)
    assert not list(tmp_path.iterdir())


def test_fingerprints() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert fingerprint([x]) == fingerprint([x.T.contiguous().T])
    different = [[x], [x.view(3, 2)], [x.double()], [x + 1e-6], [x, x], [-x], []]
    assert len({fingerprint(tensors) for tensors in different}) == len(different)
