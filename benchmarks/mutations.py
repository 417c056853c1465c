"""Do the tests bite? Small faults are put into the code one by one; each must make a test fail.

Works in a copy of the tree, with `--only WORD` on the mutations whose name or file holds the word.
The tests of a mutation are those that concern its file; they must pass before anything is changed.
A mutation whose text is not found exactly once in its file is an error: the list is kept up with
the code.

    python benchmarks/mutations.py            # 10 to 15 minutes on 2 cores; JSON on the last line
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis  # noqa: F401 - forks of this process need not import it
import PIL.Image  # noqa: F401
import pytest
import sklearn.datasets  # noqa: F401
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ops", "lookup_tables", "agents", "profiler", "search")
TIMEOUT_S = 600
TESTS_FAILED = 1
"""Exit status of pytest; any other but 0 says that the mutated code is not even a program."""

OTHER_CODE = 99
"""Exit status where the tests would import something else than the copy."""

TESTS: dict[str, tuple[str, ...]] = {
    "ops/reference.py": ("ops_reference",),
    "ops/reference_networks.py": ("ops_reference",),
    "search/baseline_searches.py": ("search_baselines",),
    "search/candidates.py": ("search_candidates", "search_space"),
    "search/comparison.py": ("search_baselines",),
    "search/confirm.py": ("search_confirm",),
    "search/crops.py": ("search_crops",),
    "search/data.py": ("search_data", "search_crops"),
    "search/distributed.py": ("search_steps", "search_training"),
    "search/evaluation.py": ("search_supernet", "search_retrain", "search_front"),
    "search/evolution.py": ("search_evolution", "search_two_stage"),
    "search/feasible.py": ("search_feasible",),
    "search/front.py": ("search_front",),
    "search/images.py": ("search_data",),
    "search/measuring.py": ("search_confirm",),
    "search/pipeline.py": ("search_run", "search_pipeline"),
    "search/retrain.py": ("search_steps", "search_retrain", "search_pipeline"),
    "search/rundir.py": ("search_two_stage",),
    "search/scaling.py": ("search_baselines",),
    "search/scoring.py": ("search_scoring", "search_space"),
    "search/space.py": ("search_space", "search_front"),
    "search/supernet.py": ("search_steps", "search_supernet"),
    "search/training.py": (
        "search_steps",
        "search_training_log",
        "search_supernet",
        "search_retrain",
        "search_training",
    ),
    "search/training_log.py": ("search_training_log", "search_steps"),
    "search/two_stage.py": ("search_two_stage",),
    "agents/security.py": ("agents_tls",),
    "lookup_tables/journal.py": ("tables_journal",),
    "lookup_tables/model.py": ("tables_model",),
    "lookup_tables/proportion.py": ("proportion",),
}
"""From a file to names of tests, ``tests/test_NAME.py``, the quickest first."""


@dataclass(frozen=True)
class Mutation:
    """A small fault.

    Attributes:
        name: what it does wrong.
        file: path in the repository.
        old: text that is in the file exactly once.
        new: what takes its place.
    """

    name: str
    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> str:
        """Changes the file in a tree; gives what it held before."""
        path = tree / self.file
        before = path.read_text()
        found = before.count(self.old)
        if found != 1:
            raise SystemExit(f"{self.name}: its text is {found} times in {self.file}, not once")
        path.write_text(before.replace(self.old, self.new))
        return before


MUTATIONS = (
    Mutation(
        "the validation split is part of the training images",
        "search/data.py",
        'pools["validation"], pools["train"] = pools["train"].divide(share)',
        'pools["validation"], _ = pools["train"].divide(share)',
    ),
    Mutation(
        "the digits' test images are trained on",
        "search/data.py",
        "test, rest = everything.divide(DIGITS_TEST_PER_CLASS)",
        "test, rest = everything.divide(DIGITS_TEST_PER_CLASS)[0], everything",
    ),
    Mutation(
        "no image is mirrored",
        "search/data.py",
        ("if self.flip:\n            mirrored"),
        ("if False:\n            mirrored"),
    ),
    Mutation(
        "all images of a batch are mirrored alike",
        "search/data.py",
        "torch.rand((n, 1), generator=generator) < 0.5",
        "torch.rand((1, 1), generator=generator).expand(n, 1) < 0.5",
    ),
    Mutation(
        "images are shifted down and right only",
        "search/data.py",
        "torch.randint(-self.shift, self.shift + 1",
        "torch.randint(0, self.shift + 1",
    ),
    Mutation(
        "rows are shifted as columns are",
        "search/data.py",
        "torch.arange(width) + shifts[1]",
        "torch.arange(width) + shifts[0]",
    ),
    Mutation(
        "images are not divided by their deviation",
        "search/data.py",
        "return (images.float() - mean) * scale",
        "return images.float() - mean",
    ),
    Mutation(
        "mean and deviation are of the test images",
        "search/data.py",
        'train = splits["train"]',
        'train = splits["test"]',
    ),
    Mutation(
        "a limit leaves the test split whole",
        "search/data.py",
        "pools = {name: pool.divide(per_class)[0] for name, pool in pools.items()}",
        ('pools = {n: p if n == "test" else p.divide(per_class)[0] for n, p in pools.items()}'),
    ),
    Mutation(
        "photographs are not mirrored in training",
        "search/data.py",
        "backbone.input_height // 8), flip=True)",
        "backbone.input_height // 8))",
    ),
    Mutation(
        "a balanced draw is not balanced",
        "search/data.py",
        "order[torch.argsort(turn, stable=True)[:count]]",
        "order[:count]",
    ),
    Mutation(
        "images are squeezed, not cut, to the aspect asked for",
        "search/data.py",
        "ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)",
        "image.resize((width, height), Image.Resampling.BILINEAR)",
    ),
    Mutation(
        "the way a camera was held is not heeded",
        "search/data.py",
        "            ImageOps.exif_transpose(opened, in_place=True)\n",
        "",
    ),
    Mutation(
        "augmentation is off",
        "search/training.py",
        "if self._settings.augment:",
        "if False:",
    ),
    Mutation(
        "augmentation is always on",
        "search/training.py",
        "if self._settings.augment:",
        "if True:",
    ),
    Mutation(
        "every step augments alike",
        "search/training.py",
        "generator(self._settings.seed, AUGMENT, step, part)",
        "generator(self._settings.seed, AUGMENT, 0, part)",
    ),
    Mutation(
        "every epoch has the first one's order",
        "search/training.py",
        "generator(s.seed, ORDER, epoch)",
        "generator(s.seed, ORDER, 0)",
    ),
    Mutation(
        "images are not shuffled",
        "search/training.py",
        "self._order = torch.randperm(len(self._data.train), generator=shuffler)",
        "self._order = torch.arange(len(self._data.train))",
    ),
    Mutation(
        "the order does not depend on the seed",
        "search/training.py",
        "generator(s.seed, ORDER, epoch)",
        "generator(0, ORDER, epoch)",
    ),
    Mutation(
        "all parts of a batch are the first",
        "search/training.py",
        "first = at * s.batch + part * size",
        "first = at * s.batch",
    ),
    Mutation(
        "dropout is the same in every step",
        "search/training.py",
        "torch.manual_seed(derive(settings.seed, DROPOUT, step, part))",
        "torch.manual_seed(derive(settings.seed, DROPOUT, 0, part))",
    ),
    Mutation(
        "dropout draws go on from the step before",
        "search/training.py",
        "                torch.manual_seed(derive(settings.seed, DROPOUT, step, part))\n",
        "",
    ),
    Mutation(
        "a supernet's labels are not smoothed",
        "search/training.py",
        "F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)",
        "F.cross_entropy(logits, labels)",
    ),
    Mutation(
        "gradients are not clipped",
        "search/training.py",
        "if settings.clip is not None:",
        "if False:",
    ),
    Mutation(
        "a resumed training forgets what it counted since its last row",
        "search/training.py",
        'content.get("logged", ())',
        "()",
    ),
    Mutation(
        "rows after a checkpoint stay when a training resumes",
        "search/training.py",
        "    log.rewind(start)\n",
        "",
    ),
    Mutation(
        "the learning rate stays at its height",
        "search/training.py",
        "rate = settings.rate(step, steps)",
        "rate = settings.learning_rate",
    ),
    Mutation(
        "no momentum",
        "search/training.py",
        "momentum=settings.momentum",
        "momentum=0.0",
    ),
    Mutation(
        "nothing decays",
        "search/training.py",
        '"weight_decay": settings.weight_decay',
        '"weight_decay": 0.0',
    ),
    Mutation(
        "biases decay",
        "search/training.py",
        '"weight_decay": 0.0}',
        '"weight_decay": settings.weight_decay}',
    ),
    Mutation(
        "gradients of parts are summed, not averaged",
        "search/training.py",
        "(loss / parts).backward()",
        "loss.backward()",
    ),
    Mutation(
        "gradients pile up over steps",
        "search/training.py",
        "            optimizer.zero_grad(set_to_none=True)\n            for",
        "            for",
    ),
    Mutation(
        "the initial weights do not depend on the seed",
        "search/training.py",
        ("with seeded(seed, INITIAL):\n        return Supernet"),
        ("with seeded(0, INITIAL):\n        return Supernet"),
    ),
    Mutation(
        "the paths do not depend on the seed",
        "search/training.py",
        "paths = _Paths(sampler, settings.seed)",
        "paths = _Paths(sampler, 0)",
    ),
    Mutation(
        "all chunks of paths are the first",
        "search/training.py",
        "np.random.default_rng([self._seed, PATHS, number])",
        "np.random.default_rng([self._seed, PATHS, 0])",
    ),
    Mutation(
        "every step trains the first path",
        "search/training.py",
        "logits = run(images, paths[step])",
        "logits = run(images, paths[0])",
    ),
    Mutation(
        "fair training draws the same order in every step",
        "search/training.py",
        "np.random.default_rng([settings.seed, FAIR, step])",
        "np.random.default_rng([settings.seed, FAIR])",
    ),
    Mutation(
        "the sandwich has no smallest path",
        "search/training.py",
        "for code in (supernet.smallest(), paths[2 * step]",
        "for code in (supernet.largest(), paths[2 * step]",
    ),
    Mutation(
        "the sandwich's teacher learns from its pupils",
        "search/training.py",
        "teacher = logits.detach().softmax(1)",
        "teacher = logits.softmax(1)",
    ),
    Mutation(
        "the sandwich's pupils drop out",
        "search/training.py",
        "F.cross_entropy(run(images, code, False), teacher)",
        "F.cross_entropy(run(images, code), teacher)",
    ),
    Mutation(
        "bf16 is not used",
        "search/training.py",
        'mixed = settings.precision == "bf16"',
        "mixed = False",
    ),
    Mutation(
        "a resumed training begins at step 0",
        "search/training.py",
        "return step, Tally(",
        "return 0, Tally(",
    ),
    Mutation(
        "a resumed training forgets its momentum",
        "search/training.py",
        '            optimizer.load_state_dict(content["optimizer"])\n',
        "",
    ),
    Mutation(
        "the checkpoint of other data is taken",
        "search/training.py",
        'facts = {**identity, "settings": told, "data": data.describe()}',
        'facts = {**identity, "settings": told}',
    ),
    Mutation(
        "the last weights are not saved",
        "search/training.py",
        "kept = last or done % settings.checkpoint_steps == 0",
        "kept = done % settings.checkpoint_steps == 0",
    ),
    Mutation(
        "a loss that is no number goes unnoticed",
        "search/training.py",
        "if not np.isfinite(status.loss):",
        "if False:",
    ),
    Mutation(
        "a replica's gradients are those of one process",
        "search/distributed.py",
        "    done.set_result(world.sum(values))",
        "    done.set_result(values)",
    ),
    Mutation(
        "progress tells the sum of losses",
        "search/training_log.py",
        "self.loss / max(1.0, self.losses),",
        "self.loss,",
    ),
    Mutation(
        "stage 2's length does not follow the run's",
        "search/training.py",
        "stage_2=replace(self.stage_2, epochs=self.stage_2.epochs * epochs)",
        "stage_2=self.stage_2",
    ),
    Mutation(
        "a training's length does not follow the run's",
        "search/training.py",
        "retrain=replace(self.retrain, epochs=self.retrain.epochs * epochs)",
        "retrain=self.retrain",
    ),
    Mutation(
        "a cosine falls like a line",
        "search/training.py",
        'if self.schedule == "linear" else 0.5',
        "if True else 0.5",
    ),
    Mutation(
        "digits are trained as photographs are",
        "search/training.py",
        'if data.kind == "digits":',
        "if False:",
    ),
    Mutation(
        "stage 2 inherits no operator",
        "search/supernet.py",
        "self.operator(layer, choice).load_state_dict(source.state_dict())",
        "pass",
    ),
    Mutation(
        "stage 2 inherits no stem",
        "search/supernet.py",
        "        self.stem.load_state_dict(other.stem.state_dict())\n",
        "",
    ),
    Mutation(
        "stage 2 inherits no head",
        "search/supernet.py",
        "        self.head.load_state_dict(other.head.state_dict())\n",
        "",
    ),
    Mutation(
        "operators are inherited by place, not by name",
        "search/supernet.py",
        "other.candidates[layer].index(name))",
        "min(choice, len(other.candidates[layer]) - 1))",
    ),
    Mutation(
        "gates are not heeded in inheriting",
        "search/supernet.py",
        "if (self.backbone, self.gate) != (other.backbone, other.gate):",
        "if self.backbone != other.backbone:",
    ),
    Mutation(
        "a supernet ignores the gate",
        "search/supernet.py",
        "build_operator(parse_operator(name), shape, gate, affine=False)",
        "build_operator(parse_operator(name), shape, affine=False)",
    ),
    Mutation(
        "a supernet's BatchNorm has a scale",
        "search/supernet.py",
        "self.head = build_head(backbone, affine=False)",
        "self.head = build_head(backbone)",
    ),
    Mutation(
        "dropout is never on",
        "search/supernet.py",
        "self.head.dropout.train(self.training and dropout)",
        "self.head.dropout.train(False)",
    ),
    Mutation(
        "the largest path is the smallest",
        "search/supernet.py",
        "tuple(max(range(len(c)), key=c.__getitem__)",
        "tuple(min(range(len(c)), key=c.__getitem__)",
    ),
    Mutation(
        "paths are scored on other images than the labels are of",
        "search/evaluation.py",
        "validation = Batches(data.validation.images, data",
        "validation = Batches(data.test.images, data",
    ),
    Mutation(
        "BatchNorm is not recalibrated in the last stretch",
        "search/evaluation.py",
        ("            for x in counted(kept.calibration):\n                _chain(whole, x)\n"),
        "            pass\n",
    ),
    Mutation(
        "BatchNorm's old statistics are kept",
        "search/evaluation.py",
        "        norm.reset_running_stats()\n",
        "",
    ),
    Mutation(
        "paths that are scored together share their statistics",
        "search/evaluation.py",
        "        _put(self._own)\n",
        "",
    ),
    Mutation(
        "images on the disk are read for each path",
        "search/evaluation.py",
        "            if self._stored:",
        "            if False:",
    ),
    Mutation(
        "BatchNorm's last batch counts more",
        "search/evaluation.py",
        "norm.momentum = 1 / number",
        "norm.momentum = 0.1",
    ),
    Mutation(
        "calibration images are of the validation split",
        "search/evaluation.py",
        "chosen = take(data.train.images, order[",
        "chosen = take(data.validation.images, order[",
    ),
    Mutation(
        "calibration images are the first ones",
        "search/evaluation.py",
        ("order = torch.randperm(len(data.train), generator=generator(data.seed, CALIBRATION))"),
        "order = torch.arange(len(data.train))",
    ),
    Mutation(
        "accuracies come in another order",
        "search/evaluation.py",
        "found[order] = shares",
        "found[:] = shares",
    ),
    Mutation(
        "equal codes get each other's places",
        "search/evaluation.py",
        "return found[inverse.reshape(-1)].tolist()",
        "return found[np.sort(inverse.reshape(-1))].tolist()",
    ),
    Mutation(
        "a network is scored in training mode",
        "search/evaluation.py",
        "network.to(place).eval()",
        "network.to(place)",
    ),
    Mutation(
        "stage 2 starts afresh",
        "search/evaluation.py",
        "            supernet.inherit(self._trained(stage - 1, previous).cpu())\n",
        "",
    ),
    Mutation(
        "stage 2 is trained as stage 1 is",
        "search/evaluation.py",
        "settings = self._preset.stage_2",
        "pass",
    ),
    Mutation(
        "the evaluator ignores the gate",
        "search/evaluation.py",
        (
            "supernet = build_supernet(self._backbone, candidates, self._gate, self._seed)\n"
            "            if previous"
        ),
        (
            "supernet = build_supernet(self._backbone, candidates, GATES[0], self._seed)\n"
            "            if previous"
        ),
    ),
    Mutation(
        "the evaluator ignores the seed",
        "search/evaluation.py",
        "self._preset = (preset or preset_for(data)).adjusted(seed=seed, device=device)",
        "self._preset = (preset or preset_for(data)).adjusted(device=device)",
    ),
    Mutation(
        "stage 2 resumes stage 1's checkpoint",
        "search/evaluation.py",
        "self._directory / SUPERNET_FILE.format(stage)",
        "self._directory / SUPERNET_FILE.format(1)",
    ),
    Mutation(
        "a part of a supernet that is used again has fresh weights",
        "search/evaluation.py",
        "        part.inherit(supernet)\n",
        "",
    ),
    Mutation(
        "paths of a front are drawn from the highest budget alone",
        "search/front.py",
        "space.within(ms).feasible_set for ms in space.budgets_ms",
        "space.feasible_set for ms in space.budgets_ms",
    ),
    Mutation(
        "a budget's search starts from nothing",
        "search/front.py",
        "np.array([e.codes for e in best], dtype=np.int64) if best else None",
        "None",
    ),
    Mutation(
        "a budget takes what meets the highest",
        "search/front.py",
        "        feasible = space.within(budget_ms).feasible_set\n        meets",
        "        feasible = space.feasible_set\n        meets",
    ),
    Mutation(
        "a network is given to several budgets",
        "search/front.py",
        "if candidate.operators not in given",
        "if given is not None",
    ),
    Mutation(
        "the supernet of a front is trained for every budget",
        "search/front.py",
        "            self._ready = True\n",
        "",
    ),
    Mutation(
        "validation is taken for test",
        "search/retrain.py",
        "test = evaluate_network(network, data.test, data",
        "test = evaluate_network(network, data.validation, data",
    ),
    Mutation(
        "test is taken for validation",
        "search/retrain.py",
        "validation = evaluate_network(network, data.validation, data",
        "validation = evaluate_network(network, data.test, data",
    ),
    Mutation(
        "a network's labels are not smoothed",
        "search/retrain.py",
        "F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)",
        "F.cross_entropy(logits, labels)",
    ),
    Mutation(
        "a trained network keeps its running statistics",
        "search/retrain.py",
        "    recalibrate(network, calibration_batches(",
        "    (lambda network, batches: None)(network, calibration_batches(",
    ),
    Mutation(
        "a network ignores the gate",
        "search/retrain.py",
        (
            "with seeded(settings.seed, INITIAL):\n"
            "        network = Network(backbone, operators, gate)"
        ),
        ("with seeded(settings.seed, INITIAL):\n        network = Network(backbone, operators)"),
    ),
    Mutation(
        "a network's initial weights do not depend on the seed",
        "search/retrain.py",
        "with seeded(settings.seed, INITIAL)",
        "with seeded(0, INITIAL)",
    ),
    Mutation(
        "by default a network is trained as a supernet is",
        "search/retrain.py",
        "preset_for(data).retrain",
        "preset_for(data).supernet",
    ),
    Mutation(
        "another gate's checkpoint is taken",
        "search/retrain.py",
        ('"operators": list(operators), "gate": gate}\n    checkpoint'),
        ('"operators": list(operators)}\n    checkpoint'),
    ),
    Mutation(
        "the run's seed is not passed to its trainings",
        "search/pipeline.py",
        "preset.adjusted(seed=s.seed, device=s.device)",
        "preset.adjusted(device=s.device)",
    ),
    Mutation(
        "the run's length of training is ignored",
        "search/pipeline.py",
        "(self._wanted_preset or preset_for(self.data)).scaled(s.training)",
        "(self._wanted_preset or preset_for(self.data))",
    ),
    Mutation(
        "stage 2's supernet is always trained by single paths",
        "search/pipeline.py",
        "stage_2=replace(preset.stage_2, strategy=s.supernet)",
        "stage_2=preset.stage_2",
    ),
    Mutation(
        "the evaluator gets another gate",
        "search/pipeline.py",
        "            self._gate,\n            self._settings.seed",
        '            "h-swish",\n            self._settings.seed',
    ),
    Mutation(
        "the winner is trained with stage 1's settings",
        "search/pipeline.py",
        "workshop.preset.retrain",
        "workshop.preset.supernet",
    ),
    Mutation(
        "the winner is trained with the default gate",
        "search/pipeline.py",
        "        architecture.gate,\n        workshop.trained",
        '        "h-swish",\n        workshop.trained',
    ),
    Mutation(
        "the validation figure is the test's",
        "search/retrain.py",
        'Accuracy(validation[0], "validation", ranked',
        'Accuracy(test[0], "validation", ranked',
    ),
    Mutation(
        "the test figure is the validation's",
        "search/retrain.py",
        'Accuracy(test[0], "test", how',
        'Accuracy(validation[0], "test", how',
    ),
    Mutation(
        "what was confirmed is measured again",
        "search/pipeline.py",
        "if measure is not None and leads() and not run.confirmed_path.exists():",
        "if measure is not None and leads():",
    ),
    Mutation(
        "a network in training is exchanged",
        "search/pipeline.py",
        "or (wanted and not run.training_begun)",
        "or wanted",
    ),
    Mutation(
        "an earlier stage's network is timed first",
        "search/pipeline.py",
        "for stage in reversed(stages.stages):",
        "for stage in stages.stages:",
    ),
    Mutation(
        "the search ignores the number of evaluations",
        "search/pipeline.py",
        "            evaluations=settings.evaluations,\n",
        "",
    ),
    Mutation(
        "the search ignores the seed",
        "search/pipeline.py",
        ("            seed=settings.seed,\n            log=run"),
        "            log=run",
    ),
    Mutation(
        "a table that is not additive is searched",
        "search/pipeline.py",
        "if not begun and (words := refusal(space)):",
        "if False and (words := refusal(space)):",
    ),
    Mutation(
        "a finished training is done again",
        "search/pipeline.py",
        "if not (known and run.weights_path.exists()):",
        "if True:",
    ),
    Mutation(
        "stage 1 searches all layers",
        "search/two_stage.py",
        "feasible=space.feasible_set.restrict(dict.fromkeys(range(t), 0))",
        "feasible=space.feasible_set",
    ),
    Mutation(
        "stage 2 inherits nothing",
        "search/two_stage.py",
        "                previous=later.candidates,\n",
        "",
    ),
    Mutation(
        "stage 2 does not look at stage 1's winner",
        "search/two_stage.py",
        "start=np.zeros((1, space.layers), dtype=np.int64),",
        "start=None,",
    ),
    Mutation(
        "both stages draw alike",
        "search/two_stage.py",
        "np.random.SeedSequence([seed, stage.number])",
        "np.random.SeedSequence([seed])",
    ),
    Mutation(
        "a stage's seed is always 0",
        "search/two_stage.py",
        "np.random.SeedSequence([seed, stage.number])",
        "np.random.SeedSequence([0, stage.number])",
    ),
    Mutation(
        "what was evaluated is not recorded",
        "search/two_stage.py",
        ("            log.append_evaluated(stage.number, stage.candidates, batch)\n        if"),
        ("            pass\n        if"),
    ),
    Mutation(
        "the search ends with stage 1's winner",
        "search/two_stage.py",
        "return self.stages[-1]",
        "return self.stages[0]",
    ),
    Mutation(
        "progress counts from 0 in a resumed search",
        "search/two_stage.py",
        "done = len(recorded)\n",
        "done = 0\n",
    ),
    Mutation(
        "progress promises more than there is",
        "search/two_stage.py",
        "total = min(evaluations, count) if feasible.exact else evaluations",
        "total = evaluations",
    ),
    Mutation(
        "the halves' spread need not fit in",
        "search/measuring.py",
        "return self.ms * (1 + spread)",
        "return self.ms",
    ),
    Mutation(
        "a miss teaches nothing",
        "search/confirm.py",
        "        correction = max(correction, careful_ms / candidate.predicted_ms)\n",
        "",
    ),
    Mutation(
        "where nothing meets the budget the last one is taken",
        "search/confirm.py",
        "return Confirmation(tuple(attempts), fastest)",
        "return Confirmation(tuple(attempts), len(attempts) - 1)",
    ),
    Mutation(
        "one network may be timed twice",
        "search/confirm.py",
        "        left.remove(candidate)\n",
        "        left = left[1:]\n",
    ),
    Mutation(
        "timing does not end",
        "search/confirm.py",
        "len(attempts) < ATTEMPTS * wanted and ",
        "",
    ),
    Mutation(
        "a network at the budget misses it",
        "search/confirm.py",
        "met = careful_ms <= budget_ms",
        "met = careful_ms < budget_ms",
    ),
    Mutation(
        "parents are the worst",
        "search/evolution.py",
        "best = History.of(history).best(self.top)",
        "best = best_first(history)[-self.top :]",
    ),
    Mutation(
        "of equals the slower wins",
        "search/evolution.py",
        "key=lambda e: (-e.fitness, e.latency_ms)",
        "key=lambda e: (-e.fitness, -e.latency_ms)",
    ),
    Mutation(
        "every layer mutates",
        "search/evolution.py",
        "rng.random(children.shape) < self.probability",
        "rng.random(children.shape) < 1",
    ),
    Mutation(
        "no layer mutates",
        "search/evolution.py",
        "rng.random(children.shape) < self.probability",
        "rng.random(children.shape) < 0",
    ),
    Mutation(
        "children have one parent",
        "search/evolution.py",
        "rng.integers(2, size=children.shape, dtype=np.bool_)",
        "np.ones(children.shape, dtype=np.bool_)",
    ),
    Mutation(
        "children may miss the budget",
        "search/evolution.py",
        "_keys(candidates[self._feasible.contains(candidates)])",
        "_keys(candidates)",
    ),
    Mutation(
        "networks are evaluated twice",
        "search/evolution.py",
        "self._seen = History.of(history).keys",
        "self._seen = set()",
    ),
    Mutation(
        "generations draw alike",
        "search/evolution.py",
        "np.random.default_rng([seed, generation])",
        "np.random.default_rng([seed])",
    ),
    Mutation(
        "the record of another search is taken",
        "search/evolution.py",
        "if [e.codes for e in known] != ",
        "if False and [e.codes for e in known] != ",
    ),
    Mutation(
        "few that are left are not found",
        "search/evolution.py",
        "            self.add(rng.permutation(everything), self._size)\n",
        "            pass\n",
    ),
    Mutation(
        "a fitness that is no number is taken",
        "search/evolution.py",
        "wrong = np.flatnonzero(~np.isfinite(found))",
        "wrong = np.flatnonzero(np.zeros(found.shape))",
    ),
    Mutation(
        "the budget itself misses the budget",
        "search/feasible.py",
        "self._flat_surplus[self._places(codes)].sum(axis=1) <= self._slack",
        "self._flat_surplus[self._places(codes)].sum(axis=1) < self._slack",
    ),
    Mutation(
        "listing misses the budget's edge",
        "search/feasible.py",
        "np.nonzero(extended <= self._slack)",
        "np.nonzero(extended < self._slack)",
    ),
    Mutation(
        "counting misses the budget's edge",
        "search/feasible.py",
        'slack - left.sums[-1], side="right")',
        'slack - left.sums[-1], side="left")',
    ),
    Mutation(
        "restricting fixes to the first candidate",
        "search/feasible.py",
        "layer[fixed[i] : fixed[i] + 1]",
        "layer[:1]",
    ),
    Mutation(
        "the grid rounds down",
        "search/feasible.py",
        "surplus = [-(-layer // cell) for layer in self._surplus]",
        "surplus = [layer // cell for layer in self._surplus]",
    ),
    Mutation(
        "counts overflow",
        "search/feasible.py",
        "if self.total <= _LARGEST_COUNT:",
        "if True:",
    ),
    Mutation(
        "samples favour some ways",
        "search/feasible.py",
        "reach = np.cumsum(np.where(sums[at] == before, ways[at], 0), axis=0)",
        "reach = np.cumsum(np.where(sums[at] == before, 1, 0), axis=0)",
    ),
    Mutation(
        "the fixed latency is not in a network's",
        "search/feasible.py",
        "return self.fixed_ms + self._flat_ms[self._places(codes)].sum(axis=1)",
        "return self._flat_ms[self._places(codes)].sum(axis=1)",
    ),
    Mutation(
        "capacity is MACs alone",
        "search/scoring.py",
        "* max(1, operator.params(shape))",
        "* 1",
    ),
    Mutation(
        "the reference keeps the layer's own operator",
        "search/scoring.py",
        "(model.fixed_ms + own.sum() - own)",
        "(model.fixed_ms + own.sum())",
    ),
    Mutation(
        "ties go to the later column",
        "search/scoring.py",
        'np.argsort(-log_scores, axis=-1, kind="stable")',
        ('log_scores.shape[-1] - 1 - np.argsort(-log_scores[..., ::-1], axis=-1, kind="stable")'),
    ),
    Mutation(
        "the explorer may miss the budget",
        "search/candidates.py",
        "if column not in columns[layer] and own <= room:",
        "if column not in columns[layer] and own == own:",
    ),
    Mutation(
        "the explorer is the smallest",
        "search/candidates.py",
        'np.argsort(-capacity, kind="stable")',
        'np.argsort(capacity, kind="stable")',
    ),
    Mutation(
        "the first layers explore",
        "search/candidates.py",
        "for layer in range(n - self.exploring_layers, n):",
        "for layer in range(self.exploring_layers):",
    ),
    Mutation(
        "alpha need not let stage 1 meet the budget",
        "search/candidates.py",
        "good &= stage1 <= self.budget_ms + TOLERANCE_MS",
        "",
    ),
    Mutation(
        "alpha is the farthest",
        "search/candidates.py",
        "return distance <= distance.min() + _SAME_SHARE * budget_ms",
        "return among & (distance >= np.where(among, distance, -1).max())",
    ),
    Mutation(
        "breakpoints of one layer count",
        "search/candidates.py",
        ("for layer in self._first:\n            known"),
        ("for layer in self._first[:1]:\n            known"),
    ),
    Mutation(
        "the price is of the last step",
        "search/candidates.py",
        "            price = -steps[start][0]\n",
        "",
    ),
    Mutation(
        "the network at the price takes what does not fit",
        "search/candidates.py",
        "if used > budget_ms + TOLERANCE_MS:",
        "if used > 2 * budget_ms + TOLERANCE_MS:",
    ),
    Mutation(
        "prices below the budget's alone are looked at",
        "search/candidates.py",
        "np.geomspace(1 / PRICE_RANGE, PRICE_RANGE, PRICES)",
        "np.geomspace(1 / PRICE_RANGE, 1, PRICES)",
    ),
    Mutation(
        "the best at the budget's price is no candidate",
        "search/candidates.py",
        "chosen = [base]",
        "chosen = [int(np.argmax(known))]",
    ),
    Mutation(
        "operators that fit nowhere are candidates",
        "search/candidates.py",
        "tau = np.where(tau - fastest[:, None] <= room + TOLERANCE_MS, tau, np.nan)",
        "tau = tau + 0 * room",
    ),
    Mutation(
        "rounding decides which alpha is taken",
        "search/candidates.py",
        "return distance <= distance.min() + _SAME_SHARE * budget_ms",
        "return distance <= distance.min()",
    ),
    Mutation(
        "a budget at the lowest latency is taken",
        "search/space.py",
        "if not budget_ms > low:",
        "if not budget_ms >= low:",
    ),
    Mutation(
        "a fixed alpha may leave stage 1 nothing",
        "search/candidates.py",
        "            scored.require_stage1(exponent)\n",
        "",
    ),
    Mutation(
        "an unfinished line is kept",
        "search/rundir.py",
        'whole = content[: content.rfind(b"\\n") + 1]',
        "whole = content",
    ),
    Mutation(
        "a run with other settings is carried on",
        "search/rundir.py",
        "    if differing:\n",
        "    if False:\n",
    ),
    Mutation(
        "every process writes",
        "search/rundir.py",
        ("        if not leads():\n            return\n        path"),
        "        path",
    ),
    Mutation(
        "two processes share a run",
        "search/rundir.py",
        "                run._take_lock()\n",
        "",
    ),
    Mutation(
        "shares of work come in another order",
        "search/distributed.py",
        "return [result for share in shares for result in share]",
        "return [result for share in shares[::-1] for result in share]",
    ),
    Mutation(
        "gradients are not summed over processes",
        "search/distributed.py",
        "flat = self.sum(torch.cat([g.flatten() for g in gradients]))",
        "flat = torch.cat([g.flatten() for g in gradients])",
    ),
    Mutation(
        "a failed stem or head counts as 0 ms",
        "lookup_tables/model.py",
        ("if row is not None and row.ok:\n            found"),
        ("if row is not None:\n            found"),
    ),
    Mutation(
        "the journal goes before the table is saved",
        "lookup_tables/journal.py",
        (
            "        if merged != table:\n"
            "            merged.save(self.table_path)\n"
            "        os.unlink(self.path)\n"
        ),
        (
            "        os.unlink(self.path)\n"
            "        if merged != table:\n"
            "            merged.save(self.table_path)\n"
        ),
    ),
    Mutation(
        "no certificate is asked for",
        "agents/security.py",
        "require_client_auth=authority is not None",
        "require_client_auth=False",
    ),
    Mutation(
        "an inherited test figure is of validation images",
        "search/evaluation.py",
        "replace(self._data, validation=self._data.test)",
        "self._data",
    ),
    Mutation(
        "the winner's supernet is not tested",
        "search/pipeline.py",
        "        if tested is not None:",
        "        if False:",
    ),
    Mutation(
        "one finalist is trained, whatever is wanted",
        "search/pipeline.py",
        "_finalists(stages)[: settings.finalists]",
        "_finalists(stages)[:1]",
    ),
    Mutation(
        "of finalists the first is taken",
        "search/pipeline.py",
        "best = min(range(len(trained)), key=order)",
        "best = 0",
    ),
    Mutation(
        "a finalist is chosen by its test accuracy",
        "search/pipeline.py",
        'next(a.value for a in scratch if a.split == "validation")',
        'next(a.value for a in scratch if a.split == "test")',
    ),
    Mutation(
        "of equal finalists the slower is taken",
        "search/pipeline.py",
        "return -validation, trained[number].predicted_ms or math.inf",
        "return -validation, -(trained[number].predicted_ms or math.inf)",
    ),
    Mutation(
        "a finalist's training is done again",
        "search/pipeline.py",
        "        if not file.exists():\n            label",
        "        if True:\n            label",
    ),
    Mutation(
        "a published network is halved in another place",
        "ops/reference_networks.py",
        "        stride = strides[1] if number == 1 else stride\n",
        "        stride = strides[1] if number == 2 else stride\n",
    ),
    Mutation(
        "a published network has no shortcuts",
        "ops/reference_networks.py",
        "    return _Residual(body, stride == 1 and c_in == c_out)\n\n\nclass _Classifier",
        "    return _Residual(body, False)\n\n\nclass _Classifier",
    ),
    Mutation(
        "scaled channels may lose more than a tenth",
        "ops/reference_networks.py",
        "return rounded + divisor if rounded < 0.9 * wanted else rounded",
        "return rounded",
    ),
    Mutation(
        "a width need not fit with its halves' difference",
        "search/scaling.py",
        "isinstance(answer, Measurement) and answer.careful_ms <= budget_ms",
        "isinstance(answer, Measurement) and answer.ms <= budget_ms",
    ),
    Mutation(
        "bisection takes the narrower width",
        "search/scaling.py",
        "widest = max((i for i, a in answers.items() if _meets(a, budget_ms)), default=None)",
        "widest = min((i for i, a in answers.items() if _meets(a, budget_ms)), default=None)",
    ),
    Mutation(
        "the MACs-constrained search knows latencies",
        "search/baseline_searches.py",
        "costs = within.latency_ms(",
        "costs = contest.feasible.latency_ms(",
    ),
    Mutation(
        "the budget of MACs is that of any networks",
        "search/baseline_searches.py",
        'near = np.argsort(away, kind="stable")[:NEAREST]',
        "near = np.arange(NEAREST)",
    ),
    Mutation(
        "the smallest uniform network is taken",
        "search/baseline_searches.py",
        "key=lambda candidate: (-candidate.fitness, candidate.predicted_ms),",
        "key=lambda candidate: (candidate.fitness, candidate.predicted_ms),",
    ),
    Mutation(
        "MACs stand where latencies belong",
        "search/comparison.py",
        "c.run.append_evaluated(name, c.stage.candidates, _by(c.feasible, batch))",
        "c.run.append_evaluated(name, c.stage.candidates, batch)",
    ),
    Mutation(
        "baselines are timed without the winner's rounds",
        "search/comparison.py",
        "    if all(b.measured is not None for b in there):\n        return known\n",
        "    there = [b for b in there if b.measured is None]\n",
    ),
    Mutation(
        "a baseline has more evaluations than the search",
        "search/comparison.py",
        "wanted = len(c.stage.evaluated)\n",
        "wanted = 2 * len(c.stage.evaluated)\n",
    ),
    Mutation(
        "a network that fails takes others along",
        "search/comparison.py",
        "return [answer for network in networks for answer in self([network])]",
        "return [str(error)] * len(networks)",
    ),
    Mutation(
        "networks within noise are those above the winner",
        "search/two_stage.py",
        "if e.fitness >= low]",
        "if e.fitness >= self.fitness]",
    ),
    Mutation(
        "the interval does not narrow with images",
        "lookup_tables/proportion.py",
        "square / (4 * images**2)",
        "square / 4",
    ),
    Mutation(
        "an interval is of 90%, not 95%",
        "lookup_tables/proportion.py",
        "deviations: float = NORMAL_95",
        "deviations: float = NORMAL_90",
    ),
    Mutation(
        "one network that meets the budget is enough",
        "search/confirm.py",
        " and len(met_by) < wanted:",
        " and len(met_by) < 1:",
    ),
    Mutation(
        "what is on the disk is read in another order",
        "search/images.py",
        "yield waiting.popleft().result()\n        while",
        "yield waiting.pop().result()\n        while",
    ),
    Mutation(
        "the last batches read ahead are lost",
        "search/images.py",
        "        while waiting:\n",
        "        while False:\n",
    ),
    Mutation(
        "crops are always from the left",
        "search/crops.py",
        "left, top = int(across * (width - w + 1)), int(",
        "left, top = 0, int(",
    ),
    Mutation(
        "crops are all of one shape",
        "search/crops.py",
        "ratio = math.exp(first + shape * (last - first))",
        "ratio = 1.0",
    ),
    Mutation(
        "a crop is not taken smaller where the image was decoded smaller",
        "search/crops.py",
        "across, down = size[0] / self.image[0], size[1] / self.image[1]",
        "across, down = 1.0, 1.0",
    ),
    Mutation(
        "a crop heeds no way of holding a camera",
        "search/data.py",
        "size = opened.size[::-1] if turned else opened.size",
        "size = opened.size",
    ),
    Mutation(
        "a crop is never mirrored",
        "search/data.py",
        "ImageOps.mirror(image) if crop.mirrored else image",
        "image",
    ),
    Mutation(
        "images on the disk are counted from the first",
        "search/images.py",
        "return StoredImages(self.fetch, self.numbers[chosen], self.crop)",
        "return StoredImages(self.fetch, chosen, self.crop)",
    ),
    Mutation(
        "a val folder beside a test folder is not the validation split",
        "search/data.py",
        '"val": "validation"',
        '"val": "test"',
    ),
    Mutation(
        "of train and val, val chooses",
        "search/data.py",
        'files["test"] = files.pop("validation")',
        'files["test"] = files["validation"]',
    ),
    Mutation(
        "class folders alone have no test images of their own",
        "search/data.py",
        'pools["test"], pools["train"] = pools["train"].divide(',
        'pools["test"], _ = pools["train"].divide(',
    ),
)


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of the tree, without what git ignores, in which ``hurricane`` is importable."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder)
        for name in filter(None, listed):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        (tree / "path" / "hurricane").mkdir(parents=True)
        for package in PACKAGES:
            (tree / "path" / "hurricane" / package).symlink_to(tree / package)
        yield tree


def use_copy(tree: Path) -> None:
    """Makes processes of the tests import the copy; compiled files could hide a change."""
    os.environ.setdefault("HURRICANE_CACHE", str(ROOT / ".cache" / "hurricane"))
    os.environ.update(
        PYTHONPATH=str(tree / "path"), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1"
    )
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree / "path"))


def run_tests(tree: Path, names: Sequence[str]) -> int:
    """Exit status of pytest over some tests, in a fork; one that hangs has failed.

    What takes seconds to import is here already, and nothing of ours is.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        os._exit(_test(tree, names))
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TESTS_FAILED


def _test(tree: Path, names: Sequence[str]) -> int:
    """Runs tests in this process, and tells nothing."""
    os.chdir(tree)
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(silence, descriptor)
    import hurricane.ops

    if not Path(hurricane.ops.__file__).is_relative_to(tree):
        return OTHER_CODE
    files = [f"tests/test_{name}.py" for name in names]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a word of the mutations' names or files")
    parser.add_argument(
        "--check", action="store_true", help="only look whether all texts are found"
    )
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in m.name or arguments.only in m.file]
    begun = time.monotonic()
    caught: list[str] = []
    survived: list[str] = []
    with copied_tree() as tree:
        use_copy(tree)
        for mutation in chosen:
            before = mutation.apply(tree)
            (tree / mutation.file).write_text(before)
        if arguments.check:
            return
        every = dict.fromkeys(name for m in chosen for name in TESTS[m.file])
        if status := run_tests(tree, list(every)):
            raise SystemExit(f"tests fail before anything is changed: pytest ended with {status}")
        tell(f"{len(every)} files of tests pass ({time.monotonic() - begun:.0f} s)")
        for mutation in chosen:
            since = time.monotonic()
            before = mutation.apply(tree)
            status = run_tests(tree, TESTS[mutation.file])
            (tree / mutation.file).write_text(before)
            if status not in (0, TESTS_FAILED):
                raise SystemExit(f"{mutation.name}: pytest ended with {status}")
            (caught if status else survived).append(mutation.name)
            word = "caught" if status else "SURVIVED"
            tell(f"{word}: {mutation.file}: {mutation.name} ({time.monotonic() - since:.0f} s)")
    print(
        json.dumps(
            {
                "benchmark": "mutations",
                "mutations": len(chosen),
                "caught_share": len(caught) / max(1, len(chosen)),
                "survived": survived,
                "caught": caught,
                "seconds": round(time.monotonic() - begun),
            }
        )
    )


if __name__ == "__main__":
    main()
