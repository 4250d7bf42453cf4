"""Data sets of small grey images, held in memory and read by index.

==========  =======  ====================  =======================================================
name        size     train/valid/test      source
==========  =======  ====================  =======================================================
digits      8×8      1297 / 200 / 300      scikit-learn's bundled digits, values / 16
mnist       28×28    50000 / 10000 / 10000 MNIST, values / 255; or its fixed binarisation
frey        28×20    1572 / 193 / 200      Frey Face, values / 255
==========  =======  ====================  =======================================================

(height × width.) MNIST is split in its own order: the last 10,000 training images are for
validation. Digits and Frey Face have no split of their own: a permutation that depends on the
seed alone is cut in three, so that the parts never overlap. Frey Face is a video, and neighbouring
frames are nearly the same: its test set shows how well the model knows this one film.

Binarisation, which decides what the model is given:

- ``dynamic``: every time an image is read for training, each pixel is a new Bernoulli draw with
  the grey value as its probability: augmentation by sampling from the input;
- ``once``: one such draw for each image, made when the data set is loaded;
- ``fixed``: the published draw of Larochelle and Murray (AISTATS 2011), for MNIST alone;
- ``none``: the grey values.

Validation and test sets are fixed in every case: ``dynamic`` and ``once`` use one draw that
depends on the seed alone.
"""

from dvae_fast.data.downloads import FOLDER_VARIABLE, DataError
from dvae_fast.data.sets import (
    BINARISATIONS,
    DATASETS,
    SPLITS,
    Binarisation,
    Dataset,
    NamedSet,
    check_binarise,
    evenly_spaced,
    load_dataset,
)

__all__ = [
    "BINARISATIONS",
    "DATASETS",
    "FOLDER_VARIABLE",
    "SPLITS",
    "Binarisation",
    "DataError",
    "Dataset",
    "NamedSet",
    "check_binarise",
    "evenly_spaced",
    "load_dataset",
]
