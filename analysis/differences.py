"""Where two answers to a prompt differ, word by word."""

import re
from collections import Counter
from difflib import SequenceMatcher

LEAST_COMMON = 0.25
"""Of answers that share less than this of their words nothing is marked: it would be nearly everything."""
MOST_PAIRS = 20_000
"""Equal words, in pairs, up to which answers are compared: beyond it they repeat themselves, which takes long."""
Spans = list[list[int]]
"""Where each stretch that the other text lacks begins and ends, in characters."""


def differing(first: str, second: str) -> tuple[Spans, Spans]:
    """The stretches of words in each text that the other has not in that place."""
    words = [list(re.finditer(r"\w+|[^\w\s]", text)) for text in (first, second)]
    first_words, second_words = ([word[0] for word in text] for text in words)
    counts = Counter(first_words), Counter(second_words)
    if sum(count * counts[1][word] for word, count in counts[0].items()) > MOST_PAIRS:
        return [], []
    matcher = SequenceMatcher(None, first_words, second_words, autojunk=False)
    if matcher.quick_ratio() < LEAST_COMMON or matcher.ratio() < LEAST_COMMON:
        return [], []
    ours: Spans = []
    theirs: Spans = []
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        if start < end:
            ours.append([words[0][start].start(), words[0][end - 1].end()])
        if other_start < other_end:
            theirs.append([words[1][other_start].start(), words[1][other_end - 1].end()])
    return ours, theirs


def pieces(text: str, spans: Spans) -> list[tuple[bool, str]]:
    """The text cut at its spans, in order; with each piece whether it is one of them."""
    ends = [0, *(end for span in spans for end in span), len(text)]
    cut = [(place % 2 == 1, text[ends[place] : ends[place + 1]]) for place in range(len(ends) - 1)]
    return [(marked, piece) for marked, piece in cut if piece]
