"""Files of Arena-Hard and MT-Bench, read and written as they are. Imports neither torch nor ray nor transformers."""

from slime_ray.evaluation.field_files.forms import ModelAnswer, Question
from slime_ray.evaluation.field_files.reading import answers_to, read_answers, read_questions

__all__ = ["ModelAnswer", "Question", "answers_to", "read_answers", "read_questions"]
