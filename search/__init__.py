"""What to choose: score, search space, supernet, two-stage search, training of the winner."""

from ..lookup_tables.architecture import Accuracy, Architecture, TableSource
from .evolution import Evaluated, EvolutionSearch, RandomSearch, Strategy
from .feasible import FeasibleSet
from .scoring import operator_scores
from .space import SearchSpace, build_space
from .two_stage import StageEvaluator, StageResult, TwoStageResult, two_stage_search

__all__ = [
    "Accuracy",
    "Architecture",
    "Evaluated",
    "EvolutionSearch",
    "FeasibleSet",
    "RandomSearch",
    "SearchSpace",
    "StageEvaluator",
    "StageResult",
    "Strategy",
    "TableSource",
    "TwoStageResult",
    "build_space",
    "operator_scores",
    "two_stage_search",
]
