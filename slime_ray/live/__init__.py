"""The live page: a run that is at work, with its report, in a browser of this machine."""
