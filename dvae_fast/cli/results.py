"""The results of an evaluation: where they are kept, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dvae_fast._extras import MissingExtraError
from dvae_fast._text import counted, one_number
from dvae_fast.cli.pictures import evaluation_pictures
from dvae_fast.evaluation.display import annealed_rows, importance_rows, samples_text
from dvae_fast.evaluation.partial import PARTIAL, remove_partial
from dvae_fast.files import CheckpointError, sweep_temporaries, write_json
from dvae_fast.kept import EVALUATION, evaluation_name
from dvae_fast.likelihoods import get_likelihood
from dvae_fast.locking import locked

if TYPE_CHECKING:
    import contextlib
    from pathlib import Path

    from rich.console import Console

    from dvae_fast.data import Dataset
    from dvae_fast.evaluation import AISEstimate, LikelihoodEstimate
    from dvae_fast.models import Autoencoder
    from dvae_fast.training import TrainConfig

__all__ = ["GREY", "Results", "evaluation_rows"]

GREY = (
    "The pixels are grey and the likelihood is a Bernoulli, whose values at grey pixels are no "
    "probabilities: neither log p(x) nor bits per dimension can be compared with those of another "
    "likelihood. Take --likelihood gaussian, or --binarise dynamic."
)


@dataclass(frozen=True)
class Results:
    """Where the results of an evaluation go.

    `name` is that of the files; None for the names of a run's folder (see `dvae_fast.kept`).
    """

    folder: Path
    name: str | None = None

    @classmethod
    def at(cls, out: Path) -> Results:
        return cls(out.parent, out.stem) if out.suffix.lower() == ".json" else cls(out)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """One evaluation at a time: they would take each other's partial results."""
        return locked(self.folder / ".evaluation.lock", "another evaluation")

    def keep(
        self,
        console: Console,
        config: TrainConfig,
        data: Dataset,
        model: Autoencoder,
        report: dict[str, Any],
        estimate: LikelihoodEstimate | AISEstimate,
    ) -> None:
        """The report, each example's numbers, and pictures.

        What can be written is written; CheckpointError then tells the first that cannot.
        """
        latest = self.name or EVALUATION
        failed = []
        for name in dict.fromkeys((self.name or evaluation_name(report), latest)):
            for write in (
                partial(estimate.save, self.folder / f"{name}.npz"),
                partial(write_json, self.folder / f"{name}.json", report),
            ):
                try:
                    write()
                except CheckpointError as error:
                    failed.append(error)
        if failed:
            raise failed[0]
        remove_partial(self.folder / PARTIAL)
        sweep_temporaries(self.folder)
        try:
            evaluation_pictures(self.folder / latest, config, data, model, report, estimate)
        except MissingExtraError as error:
            console.print(f"No pictures: {error}", soft_wrap=True, markup=False)


def evaluation_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What is printed of an evaluation."""
    is_density = get_likelihood(report["likelihood"]).is_density
    density = f", of a density {report['density_of']}" if is_density else ""
    of_what = ""
    if report["grey_bernoulli"]:
        density = of_what = ", which is no probability: a Bernoulli of grey pixels"
    # With values missing it is of the others.
    masked = report.get("missing") is not None
    rows = [
        (
            "log p(x observed)" if masked else "log p(x)",
            f"{one_number(report['log_likelihood'])} ± {one_number(report['standard_error'], 3)} "
            f"nats ({samples_text(report)}, {counted(report['examples'], 'example')}){of_what}",
        ),
    ]
    if report.get("log_likelihood_in_units") is not None:
        units = one_number(report["log_likelihood_in_units"])
        rows.append(("in the data's units", f"{units} nats"))
    bits = "bits per observed dimension" if masked else "bits per dimension"
    rows.append((bits, one_number(report["bits_per_dimension"], 4) + density))
    if masked:
        rows.append(("missing", f"{100 * report['missing']:.3g} % of the values"))
    rows += annealed_rows(report) if "chains" in report else importance_rows(report)
    rows.append(("evaluated in", f"{report['seconds']:.1f} s"))
    if report["non_finite"]:
        examples = counted(report["examples"], "example")
        rows.append(("not finite", f"{report['non_finite']} of {examples}"))
    return rows
