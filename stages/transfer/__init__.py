"""Transfer: finetunes and evaluates students on downstream tasks."""
