"""`slime-ray bench`: what steps, sweeps, searches, answers, plans and reports take, and how far intervals hold."""
