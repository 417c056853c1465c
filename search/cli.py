"""The command ``hurricane``: `space`, `search` and `train`, and all the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..agents.console import (
    LazyCommand,
    LazyGroup,
    emit,
    json_option,
    run_command,
)
from ..agents.version import agent_version
from ..lookup_tables.spread import STATISTICS
from ..ops.atomic import write_atomically
from ..ops.errors import BadRequest
from ..ops.pool import registered_operators
from ..profiler.options import credential_options, together, use_plugins
from .candidates import METHODS
from .evolution import STRATEGIES
from .progress import progress_bars
from .trainings import AUTO, PRECISIONS, SUPERNET_TRAININGS

if TYPE_CHECKING:
    from ..lookup_tables.architecture import TableSource
    from .front import TrainedSupernet
    from .measuring import TargetMeasurer
    from .pipeline import MeasureAccuracy, RunOutcome, SearchSettings
    from .scoring import LatencySource
    from .space import SearchSpace

# The modules that do the work are imported inside the commands, so that --help and an
# impossible request do not wait for torch.

_LAZY = {
    "agent": LazyCommand("hurricane.agents.cli:cli", "The part that runs on the board."),
    "boards": LazyCommand(
        "hurricane.profiler.boards_cli:boards_command",
        "Tells what boards there are and what they are busy with.",
    ),
    "profile-ops": LazyCommand(
        "hurricane.profiler.cli:profile_ops", "Measures operators into a lookup table."
    ),
    "support": LazyCommand(
        "hurricane.profiler.support_cli:support",
        "Asks which operators a target takes, where they run, and how exactly.",
    ),
    "table": LazyCommand(
        "hurricane.lookup_tables.cli:table_group",
        "Shows, checks, compares and merges lookup tables.",
    ),
    "verify": LazyCommand(
        "hurricane.profiler.verify_cli:verify",
        "Times end-to-end networks against a table's prediction.",
    ),
    "export": LazyCommand(
        "hurricane.search.export_cli:export_command", "Writes an architecture as ONNX or TFLite."
    ),
    "report": LazyCommand(
        "hurricane.search.report_cli:report_command", "Makes a run's report.html."
    ),
    "demo": LazyCommand(
        "hurricane.search.demo:demo_command", "Runs all steps in small, with a report."
    ),
}

_CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.group(cls=LazyGroup, lazy=_LAZY, context_settings=_CONTEXT)
@click.version_option(agent_version(), prog_name="hurricane")
@click.option(
    "--plugin",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Python file that registers operators of your own (repeatable).",
)
def cli(plugin: tuple[str, ...]) -> None:
    """Hardware-aware architecture search from latencies measured on the device."""
    if plugin:
        use_plugins(plugin)
        registered_operators()  # a broken plugin fails here, whatever the command is


def main() -> None:
    """Runs ``hurricane`` as a program."""
    run_command(cli, "hurricane")


class _AlphaType(click.ParamType):
    """``auto`` or a number of at least 0."""

    name = "alpha"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | float:
        if value == "auto" or isinstance(value, float):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a number", param, ctx)


class _BudgetsType(click.ParamType):
    """One number of ms, or several with commas between them."""

    name = "ms"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no number of ms, nor several as in 10,15,20", param, ctx)


_space_options = together(
    click.option(
        "--table", metavar="TABLE", help="Lookup table: a path, or a shipped table's name."
    ),
    click.option(
        "--latency",
        "latency_ms",
        type=_BudgetsType(),
        metavar="MS[,MS…]",
        help="Latency budget, or several that are searched with one supernet.",
    ),
    click.option("--backbone", help="Name or TOML file [the one that the table covers]."),
    click.option("--target", help="One of the table's targets [the only one]."),
    click.option(
        "--method",
        type=click.Choice(METHODS),
        help="How operators are chosen and searched: pareto, the best around the budget's price of "
        "a ms, all layers at once; or as in the paper, hurricane [pareto].",
    ),
    click.option(
        "--top",
        type=int,
        metavar="P",
        help="Operators kept at each layer [pareto: 5, with several budgets 7; hurricane: 4].",
    ),
    click.option(
        "--alpha",
        type=_AlphaType(),
        metavar="A",
        help="hurricane: exponent of capacity in the score, or auto [auto].",
    ),
    click.option(
        "--exploring-layers",
        type=int,
        metavar="N",
        help="hurricane: number of last layers with one more candidate [the backbone's].",
    ),
    click.option(
        "--split",
        type=int,
        metavar="N",
        help="Number of first layers: those that stage 2 searches; 0 searches all layers in one "
        "stage [pareto: 0, hurricane: the backbone's].",
    ),
    click.option(
        "--score-latency",
        type=click.Choice(["operator", "architecture"]),
        help="hurricane: latency in the score, the operator's or the whole network's [operator].",
    ),
    click.option(
        "--support",
        metavar="REPORT",
        help="Report of hurricane support: leave out operators that the target does not support, "
        "or that fall back to another unit.",
    ),
    click.option(
        "--min-sqnr",
        type=click.FloatRange(min=0.0),
        metavar="DB",
        help="With --support: leave out operators with less SQNR than this, too.",
    ),
    click.option(
        "--statistic",
        type=click.Choice(STATISTICS),
        help="What the budget holds for: the median or the 90th percentile of calls on the device "
        "as it is, or its quiet time [median where the table knows it].",
    ),
    click.option(
        "--accept-table",
        is_flag=True,
        help="Accept a table whose latencies are not additive (hurricane verify).",
    ),
)

_training_options = together(
    click.option(
        "--data",
        default="digits",
        show_default=True,
        metavar="SPEC",
        help="digits, cifar10:PATH or folder:PATH; ?limit=N after it takes N images of each split.",
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0)),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="Device for training: auto, cpu, cuda or cuda:N.",
    ),
    click.option(
        "--training",
        default=1.0,
        show_default=True,
        metavar="FACTOR",
        help="Length of training, as a multiple of the data's preset.",
    ),
    click.option(
        "--epochs",
        type=float,
        metavar="N",
        help="Epochs of a supernet and of the network found, instead of --training.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        metavar="N",
        help="Images a step, learning rates in proportion [the data's preset, larger on a GPU].",
    ),
    click.option(
        "--precision",
        default=AUTO,
        show_default=True,
        type=click.Choice((*PRECISIONS, AUTO)),
        help="Of training; auto takes bf16 on a GPU that has it.",
    ),
)

one_agent = together(
    click.option(
        "--agent",
        metavar="HOST:PORT",
        help="Agent to measure on [a private one on this machine].",
    ),
    credential_options,
)

_agent_options = together(
    click.option(
        "--measure/--no-measure",
        default=True,
        show_default=True,
        help="Measure on the table's target: the best candidates before training (which can "
        "change the winner), and the trained network's latency and accuracy.",
    ),
    one_agent,
)

_SPACE_HELP = """Builds the search space for a budget: the operators to choose from at each layer.

\b
Examples:
  hurricane space --table cpu.csv --latency 17
  hurricane space --table cpu.csv --latency 10,15,20
  hurricane space --table cpu.csv --latency 17 --method hurricane --alpha 0.42 -o space.json
  hurricane space --table dsp.csv --latency 9 --support dsp.support.csv --min-sqnr 25
"""

_SEARCH_HELP = """Finds the most accurate network within a latency budget, trains and exports it.

Given several budgets it finds networks for each with one supernet, times them on the target and
trains none: pick one, and train it with hurricane train. A run that was stopped is resumed by the
same command.

\b
Examples:
  hurricane search --table cpu.csv --latency 4 --backbone digits32 -o runs/mine
  hurricane search --table cpu.csv --latency 2,3,4,6 -o runs/front
  hurricane search --table dsp.csv --latency 1,2 --reuse runs/front -o runs/front-dsp
  hurricane search --space space.json --data cifar10:cifar-10-python.tar.gz -o runs/cifar
"""

_TRAIN_HELP = """Trains an architecture from scratch and exports it.

\b
Example:
  hurricane train runs/mine/winner-1.json --data digits -o runs/stage-1
"""


@cli.command(help=_SPACE_HELP, short_help="Builds the search space for a budget.")
@_space_options
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Space file to write."
)
@json_option
def space(output: Path | None, as_json: bool, **options: Any) -> None:
    from .summary import describe_space

    made = _make_space(options)
    if output is not None:
        made.save(output)
    text = describe_space(made) + (f"\n\nwritten to {output}" if output else "")
    emit(made.to_dict(), as_json, text)


@cli.command(help=_SEARCH_HELP, short_help="Finds, trains and exports a network for a budget.")
@_space_options
@click.option(
    "--space",
    "space_file",
    type=click.Path(path_type=Path),
    metavar="SPACE",
    help="Space file, instead of the options that build a space.",
)
@_training_options
@click.option("--stages", default=2, show_default=True, type=click.IntRange(1, 2))
@click.option(
    "--evaluations",
    default=1000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most architectures evaluated in each stage.",
)
@click.option("--population", default=50, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--strategy",
    default="evolution",
    show_default=True,
    type=click.Choice(tuple(STRATEGIES)),
)
@click.option(
    "--supernet",
    default="single-path",
    show_default=True,
    type=click.Choice(SUPERNET_TRAININGS),
    help="Sampling of paths when a supernet is trained.",
)
@click.option(
    "--finalists",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Best networks trained from scratch; the most accurate on the validation split is taken. "
    "With several budgets: networks given for each.",
)
@click.option(
    "--reuse",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Search with the supernet of an earlier run, for other budgets or another target; it must "
    "have all layers in one stage.",
)
@click.option(
    "--baselines",
    metavar="NAMES",
    help="With one budget, what the network found is compared with: all, none, or some of random, "
    "macs and uniform (scored by the supernet) and published networks such as mobilenet-v2 (scaled "
    "to the budget), separated by commas. All are timed beside it [all].",
)
@click.option(
    "--train-baselines",
    is_flag=True,
    help="Train the baselines from scratch as the network found.",
)
@_agent_options
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The run's directory."
)
@json_option
def search(
    space_file: Path | None, reuse: Path | None, output: Path, as_json: bool, **options: Any
) -> None:
    from .baselines import parse_baselines
    from .comparison import BaselineSettings
    from .front import TrainedSupernet
    from .pipeline import SearchSettings, accepted, run_search
    from .rundir import disconnect, leads
    from .space import SearchSpace
    from .summary import (
        describe_architecture,
        describe_comparison,
        describe_space,
        describe_stage,
    )

    settings = _settings(SearchSettings, options)
    supernet = None if reuse is None else TrainedSupernet.of_run(reuse)
    names = parse_baselines("all" if options["baselines"] is None else options["baselines"])
    if options["train_baselines"] and not names:
        raise BadRequest("--baselines none leaves --train-baselines nothing to train")
    if space_file is None:
        made = _make_space(options, supernet)
    elif supernet is not None:
        raise BadRequest("--reuse has the space of its run: leave out --space")
    else:
        given = [name for name in _SPACE_NAMES if options[name] is not None]
        if given:
            option = "--" + given[0].removesuffix("_ms").replace("_", "-")
            raise BadRequest(f"the space file already settles {option}: give one or the other")
        made = SearchSpace.load(space_file)
        made = accepted(made) if options["accept_table"] else made
        _tell(made.notes())
    front = bool(made.lower_ms) or supernet is not None
    if front and (options["baselines"] is not None or options["train_baselines"]):
        raise BadRequest("baselines are of a search for one budget: leave them out here")
    measure = _measurer(made.table, options)
    baselines = BaselineSettings(
        names, options["train_baselines"], measure.together if measure else None
    )
    if not as_json and leads():
        click.echo(describe_space(made) + "\n", err=True)
    if front:
        _search_front(made, settings, output, measure, supernet, as_json)
        return
    with progress_bars() as watch:
        outcome = run_search(
            made,
            settings,
            output,
            measure=measure,
            watch=watch,
            test=_test(measure),
            baselines=baselines,
        )
    disconnect()
    if not leads():
        return
    from .report import write_report

    assert outcome.stages is not None
    images = outcome.validation_images
    write_report([output], output / "report.html", title=output.resolve().name)
    stages = [
        {
            "stage": stage.stage,
            "evaluated": len(stage.evaluated),
            "feasible": stage.feasible,
            "accuracy": stage.fitness,
            "images": images,
            "predicted_ms": stage.latency_ms,
            "operators": list(stage.operators),
            "within_noise": [
                {
                    "operators": list(stage.names(found.codes)),
                    "accuracy": found.fitness,
                    "predicted_ms": found.latency_ms,
                }
                for found in (stage.within_noise(images) if images is not None else ())
            ],
        }
        for stage in outcome.stages.stages
    ]
    result = {
        "directory": str(outcome.directory),
        "stages": stages,
        "architecture": outcome.architecture.to_dict(),
        "unmeasured": outcome.unmeasured,
        "untested": outcome.untested,
        "comparison": outcome.comparison.to_dict() if outcome.comparison else None,
    }
    text = [describe_stage(stage, images) for stage in outcome.stages.stages]
    text += [describe_architecture(outcome.architecture)]
    if outcome.comparison is not None:
        text += ["", describe_comparison(outcome.comparison, outcome.architecture), ""]
    text += _last_lines(outcome)
    emit(result, as_json, "\n".join(text))


def _search_front(
    space: SearchSpace,
    settings: SearchSettings,
    output: Path,
    measure: TargetMeasurer | None,
    supernet: TrainedSupernet | None,
    as_json: bool,
) -> None:
    """A search for several budgets, or with a supernet that is there."""
    from .front import run_front
    from .rundir import disconnect, leads
    from .summary import describe_front

    with progress_bars() as watch:
        outcome = run_front(space, settings, output, measure=measure, watch=watch, reuse=supernet)
    disconnect()
    if leads():
        from .front_report import Front, render_fronts

        page = render_fronts([Front.read(output)], output.resolve().name)
        write_atomically(output / "report.html", page.encode())
        emit(outcome.to_dict(), as_json, describe_front(outcome))


@cli.command(help=_TRAIN_HELP, short_help="Trains an architecture from scratch.")
@click.argument("architecture", type=click.Path(path_type=Path))
@_training_options
@_agent_options
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The run's directory."
)
@json_option
def train(architecture: Path, output: Path, as_json: bool, **options: Any) -> None:
    from ..lookup_tables.architecture import Architecture
    from .pipeline import SearchSettings, run_training
    from .rundir import disconnect, leads
    from .summary import describe_architecture

    loaded = Architecture.load(architecture)
    settings = _settings(SearchSettings, options)
    measure = _measurer(loaded.table, options)
    with progress_bars() as watch:
        outcome = run_training(
            loaded, settings, output, measure=measure, watch=watch, test=_test(measure)
        )
    disconnect()
    if not leads():
        return
    result = {
        "directory": str(output),
        "architecture": outcome.architecture.to_dict(),
        "unmeasured": outcome.unmeasured,
        "untested": outcome.untested,
    }
    text = [describe_architecture(outcome.architecture), *_last_lines(outcome)]
    emit(result, as_json, "\n".join(text))


_SPACE_NAMES = (
    "table",
    "latency_ms",
    "backbone",
    "target",
    "support",
    "min_sqnr",
    "statistic",
    "method",
    "top",
    "alpha",
    "exploring_layers",
    "split",
    "score_latency",
)
"""Options that build a space; None where not given."""

_BUILD_NAMES = _SPACE_NAMES[_SPACE_NAMES.index("method") :]
"""Those of them that `build_space` takes."""


def _make_space(options: dict[str, Any], reuse: TrainedSupernet | None = None) -> SearchSpace:
    """The space that the options ask for; of a trained supernet's operators, if there is one."""
    from ..lookup_tables.support import SupportReport
    from .pipeline import open_latency
    from .space import build_space, retime
    from .supported import keep_supported

    if options["table"] is None or options["latency_ms"] is None:
        raise BadRequest("name a table with --table and a budget in ms with --latency")
    if reuse is not None and options["backbone"] is None:
        options["backbone"] = reuse.space.backbone
    opened = open_latency(
        options["table"],
        options["backbone"],
        options["target"],
        options["accept_table"],
        options["statistic"],
    )
    rest = {k: options[k] for k in _BUILD_NAMES if options[k] is not None}
    model: LatencySource = opened.model
    notes, support = list(opened.notes()), None
    if options["support"] is not None:
        path, least = options["support"], options["min_sqnr"]
        supported = keep_supported(opened.model, SupportReport.load(path), path, least)
        model, support = supported, supported.source
        notes += supported.notes
    elif options["min_sqnr"] is not None:
        raise BadRequest("--min-sqnr needs a report to look at: name one with --support")
    frame, budgets, about = opened.backbone, options["latency_ms"], (opened.gate, opened.source)
    if reuse is not None:
        if rest:
            first = next(iter(rest)).replace("_", "-")
            raise BadRequest(f"--reuse has the operators of its run: leave out --{first}")
        made = retime(reuse.space, model, frame, budgets, *about, support)
    else:
        gate, table = about
        made = build_space(model, frame, budgets, gate=gate, table=table, support=support, **rest)
    _tell([*notes, *made.notes()])
    return made


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(f"Note: {note}", err=True)


def _settings(kind: type[SearchSettings], options: dict[str, Any]) -> SearchSettings:
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in options.items() if name in known})


def _measurer(source: TableSource | None, options: dict[str, Any]) -> TargetMeasurer | None:
    """What measures the result, if it is to be measured; a named agent is asked at once."""
    if source is None or not options["measure"]:
        return None
    from .measuring import TargetMeasurer

    agents, keys = named_agent(options)
    try:
        measurer = TargetMeasurer.of_table(source, agents=agents, credentials=keys)
    except BadRequest as error:
        raise BadRequest(f"{error}; without its table, add --no-measure") from error
    if agents:
        measurer.check()
    return measurer


def _test(measure: TargetMeasurer | None) -> MeasureAccuracy | None:
    return None if measure is None else measure.accuracy


def named_agent(options: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The agent named, if any, and arguments of its client."""
    from ..profiler.options import credentials

    agents = [options["agent"]] if options["agent"] else []
    names = ("token_file", "tls_ca", "tls_cert", "tls_key", "insecure")
    return agents, credentials(agents, **{name: options[name] for name in names})


def _last_lines(outcome: RunOutcome) -> list[str]:
    lines = [f"not measured: {outcome.unmeasured}"] if outcome.unmeasured else []
    lines += (
        [f"accuracy on the target not measured: {outcome.untested}"] if outcome.untested else []
    )
    return [*lines, f"everything is in {outcome.directory}"]
