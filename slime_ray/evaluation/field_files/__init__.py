"""Files of Arena-Hard and MT-Bench, read and written as they are. Imports neither torch nor ray nor transformers."""

from slime_ray.evaluation.field_files.reading import (
    answers_to,
    read_answers,
    read_judgments,
    read_questions,
    read_ratings,
)
from slime_ray.evaluation.field_files.records import Game, Judgment, ModelAnswer, Question, Rating

__all__ = [
    "Game",
    "Judgment",
    "ModelAnswer",
    "Question",
    "Rating",
    "answers_to",
    "read_answers",
    "read_judgments",
    "read_questions",
    "read_ratings",
]
