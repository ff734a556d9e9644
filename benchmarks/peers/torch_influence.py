"""kronfluence's EK-FAC influence of a small equinox network, the same weights in a torch model."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import nn
from torch.utils.data import TensorDataset


class _Classification(Task):
    """Cross-entropy of a batch; its targets drawn from the model for the true Fisher."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Any:
        inputs, targets = batch
        logits = model(inputs)
        if sample:
            with torch.no_grad():
                targets = torch.multinomial(torch.softmax(logits, -1), 1).flatten()
        return nn.functional.cross_entropy(logits, targets, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Any:
        return self.compute_train_loss(batch, model)


class Kronfluence:
    """An analyzer of a tanh network; `factors()` fits, `scores()` gives [queries, samples].

    Its documented settings: EK-FAC, true Fisher, all samples in a batch, no files read back but
    its own.
    """

    def __init__(self, layers: Any, train: Any, queries: Any, damping: float) -> None:
        logging.disable(logging.WARNING)
        warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")
        self._folder = tempfile.TemporaryDirectory()
        self._train, self._queries = _dataset(*train), _dataset(*queries)
        self._damping = damping
        task = _Classification()
        model = prepare_model(_network(layers), task)
        self._analyzer = Analyzer(
            "digits", model, task, cpu=True, output_dir=self._folder.name, disable_tqdm=True
        )
        self._analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))

    def factors(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._analyzer.fit_all_factors(
                "factors",
                self._train,
                per_device_batch_size=len(self._train),
                factor_args=FactorArguments(strategy="ekfac"),
                overwrite_output_dir=True,
            )

    def scores(self) -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            found = self._analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                self._queries,
                self._train,
                per_device_query_batch_size=len(self._queries),
                per_device_train_batch_size=len(self._train),
                score_args=ScoreArguments(damping_factor=self._damping),
                overwrite_output_dir=True,
            )
        scores = found or self._analyzer.load_pairwise_scores("scores")
        return scores["all_modules"].numpy()


def _dataset(inputs: Any, targets: Any) -> TensorDataset:
    return TensorDataset(
        torch.from_numpy(np.array(inputs, np.float32)), torch.from_numpy(np.array(targets)).long()
    )


def _network(layers: Any) -> nn.Module:
    parts: list[nn.Module] = []
    for layer in layers:
        linear = nn.Linear(layer.in_features, layer.out_features)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(layer.weight)))
            linear.bias.copy_(torch.from_numpy(np.array(layer.bias)))
        parts += [linear, nn.Tanh()]
    return nn.Sequential(*parts[:-1])
