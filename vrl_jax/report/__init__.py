"""A run folder -> curves and one HTML page: `vrl-jax report RUN`.

It needs `metrics.jsonl`, and shows what else is there: `config.json`,
`evaluations.jsonl`, `rollouts/`, `examples.jsonl`, `dependency.json` and
`data_report.json`.
"""
