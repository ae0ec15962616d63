"""Rows of preference data in the forms that are read, and files of them."""

import json


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def plain(number):
    return {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}"}


def as_pair(number):
    return {
        "prompt": [user(f"question {number}")],
        "chosen": [assistant(f"good {number}")],
        "rejected": [assistant(f"bad {number}")],
    }


def ultrafeedback(number, score=8.0):
    """A row as it stands in HuggingFaceH4/ultrafeedback_binarized."""
    prompt = f"question {number}"
    chosen = [
        {"content": prompt, "role": "user"},
        {"content": f"good {number}", "role": "assistant"},
    ]
    return {
        "prompt": prompt,
        "prompt_id": f"{number:064x}",
        "chosen": chosen,
        "rejected": [
            {"content": prompt, "role": "user"},
            {"content": f"bad {number}", "role": "assistant"},
        ],
        "messages": chosen,
        "score_chosen": score,
        "score_rejected": 4.0,
    }


def write_lines(path, rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def skipped(report):
    return {group.reason: group.rows for group in report.skipped}
