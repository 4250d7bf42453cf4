"""The code in docstrings, which the API pages show: it runs, given what it speaks of."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

import dvae_fast

FOLDER = Path(dvae_fast.__file__).parent
_BLOCK = re.compile(r"::\n\n((?:(?: {4}.*)?\n)+)")

MODEL = "from dvae_fast import IWAE; model = IWAE(4, 2, (3,)); x = torch.rand(6, 4).round()"
#: of a module with code: the library that it needs, and what its reader has
GIVEN = {
    "evaluation/function.py": (
        "torch",
        "import dvae_fast; from torch.distributions import Independent, Normal\n"
        "x = torch.randn(6, 4); guide = lambda x: Independent(Normal(x, 1.0), 1)\n"
        "log_joint = lambda x, z: -(x - z).square().sum(-1)",
    ),
    "integrations/lightning.py": (
        "lightning",
        "import lightning.pytorch as L\n"
        "from dvae_fast.integrations.lightning import EvaluateLikelihood",
    ),
    "integrations/pyro.py": (
        "pyro",
        "import pyro; from pyro.distributions import Normal; pyro.clear_param_store()\n"
        "from dvae_fast.integrations.pyro import ImportanceELBO, estimate_log_likelihood\n"
        "x = batch = torch.randn(6); optimiser = pyro.optim.Adam({'lr': 1e-3})\n"
        "def model(x):\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        z = pyro.sample('z', Normal(0.0, 1.0))\n"
        "        pyro.sample('x', Normal(z, 1.0), obs=x)\n"
        "def guide(x):\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        pyro.sample('z', Normal(pyro.param('a', torch.tensor(0.5)) * x, 0.7))",
    ),
    "integrations/pythae.py": (
        "pythae",
        "from pythae.models import VAE, VAEConfig\n"
        "from dvae_fast.integrations.pythae import estimate_log_likelihood\n"
        "model = VAE(VAEConfig(input_dim=(1, 2, 2), latent_dim=2, reconstruction_loss='bce'))\n"
        "x = torch.rand(6, 1, 2, 2).round()",
    ),
    "integrations/scvi.py": (
        "scvi",
        "import anndata, numpy, scvi\n"
        "from dvae_fast.integrations.scvi import MarginalLikelihoodMixin\n"
        "counts = numpy.random.default_rng(0).poisson(2.0, (40, 6)).astype('float32')\n"
        "adata = anndata.AnnData(counts)",
    ),
    "integrations/torchmetrics.py": (
        "torchmetrics",
        f"{MODEL}; loader = x.split(3)\n"
        "from dvae_fast.integrations.torchmetrics import ImportanceNLL",
    ),
    "likelihoods/base.py": (
        "torch",
        "from dvae_fast.likelihoods import Likelihood, identity, positive",
    ),
    "training/step.py": ("torch", f"{MODEL}; optimizer = torch.optim.Adam(model.parameters())"),
    "corruptions/base.py": ("torch", "from dvae_fast.corruptions import Corruption"),
}
LIBRARY = {name for name, (library, _) in GIVEN.items() if library != "torch"}


def blocks(path: Path) -> list[str]:
    """Those of the module's docstrings that are Python, as formulas are not."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        for block in _BLOCK.findall(f"{ast.get_docstring(node) or ''}\n"):
            code = textwrap.dedent(block)
            try:
                ast.parse(code)
            except SyntaxError:
                continue
            found.append(code)
    return found


CODE = {
    str(path.relative_to(FOLDER)): found
    for path in sorted(FOLDER.rglob("*.py"))
    if "::\n" in path.read_text() and (found := blocks(path))
}


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.library] if name in LIBRARY else []) for name in CODE],
)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library, given = GIVEN[name]
    warnings.simplefilter("ignore")  # pytest puts the filters back
    pytest.importorskip(library)
    names: dict[str, Any] = {"__name__": "docstring"}
    exec(f"import torch; torch.manual_seed(0)\n{given}", names)
    for code in CODE[name]:
        small = re.sub(r"\bk=\d+", "k=20", code).replace(".train()", ".train(max_epochs=1)")
        exec(compile(small, name, "exec"), names)


def test_all_of_it_is_found() -> None:
    assert {*CODE} == {*GIVEN}
