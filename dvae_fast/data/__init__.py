"""Data sets: those by name, and one's own, in memory or streamed, read by index.

======================  =======  =====================  ===========================================
name                    size     train/valid/test       source
======================  =======  =====================  ===========================================
digits                  8×8      1297 / 200 / 300       scikit-learn's bundled digits, values / 16
mnist                   28×28    50000 / 10000 / 10000  MNIST, values / 255; or its fixed
                                                        binarisation
frey                    28×20    1572 / 193 / 200       Frey Face, values / 255
omniglot                28×28    23000 / 1345 / 8115    OMNIGLOT, drawers 1 to 15 and 16 to 20
fashion_mnist           28×28    50000 / 10000 / 10000  Fashion-MNIST, values / 255
caltech101_silhouettes  28×28    4100 / 2264 / 2307     Caltech-101 silhouettes, binary
======================  =======  =====================  ===========================================

(height × width.) MNIST and Fashion-MNIST are split in their own order: the last 10,000 training
images are for validation. Digits, Frey Face and OMNIGLOT's training images have no split of their
own: a permutation that depends on the seed alone is cut, so that the parts never overlap. Frey Face
is a video, and neighbouring frames are nearly the same: its test set shows how well the model knows
this one film.

One's own are `Dataset.from_arrays`, for arrays, tensors, sparse matrices, memory maps and torch's
data sets, and `load_path`, for files and folders; what their values are is looked at, see
`dvae_fast.data.kinds`. With ``missing="nan"`` NaN in them is what was not observed: examples keep
it, and whoever gives them to a model asks `Dataset.observed` for their mask.

Binarisation, which decides what the model is given of grey values:

- ``dynamic``: every time an image is read for training, each pixel is a new Bernoulli draw with
  the grey value as its probability: augmentation by sampling from the input;
- ``once``: one such draw for each image, made when the data set is loaded;
- ``fixed``: the published draw of Larochelle and Murray (AISTATS 2011), for MNIST alone;
- ``none``: the grey values.

Validation and test sets are fixed in every case: ``dynamic`` and ``once`` use one draw that
depends on the seed alone.
"""

from dvae_fast.data.dataset import (
    BINARISATIONS,
    SPLIT,
    SPLITS,
    Binarisation,
    Dataset,
    check_missing,
    evenly_spaced,
    with_channels,
)
from dvae_fast.data.downloads import FOLDER_VARIABLE, DataError
from dvae_fast.data.examples import MISSING, Examples, Scaling, Streamed, batches, observed
from dvae_fast.data.kinds import BINARY, KINDS, Kind, fitting, misfit
from dvae_fast.data.own import check_own_binarise, check_split, describe, named_as
from dvae_fast.data.paths import SUFFIXES as OWN_SUFFIXES
from dvae_fast.data.paths import load_path
from dvae_fast.data.sets import DATASETS, NamedSet, check_binarise, load_dataset

__all__ = [
    "BINARISATIONS",
    "BINARY",
    "DATASETS",
    "FOLDER_VARIABLE",
    "KINDS",
    "MISSING",
    "OWN_SUFFIXES",
    "SPLIT",
    "SPLITS",
    "Binarisation",
    "DataError",
    "Dataset",
    "Examples",
    "Kind",
    "NamedSet",
    "Scaling",
    "Streamed",
    "batches",
    "check_binarise",
    "check_missing",
    "check_own_binarise",
    "check_split",
    "describe",
    "evenly_spaced",
    "fitting",
    "load_dataset",
    "load_path",
    "misfit",
    "named_as",
    "observed",
    "with_channels",
]
