"""One trial from its settings to its result files, and the stages that all trials share. Ray is not involved."""
