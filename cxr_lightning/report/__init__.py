"""The report: evaluations as one self-contained page, as Markdown and as JSON.

`read` opens what `cxr evaluate` wrote, `words` names metrics and writes numbers, `verdicts`
compares with real images; `headline`, `tables`, `joint`, `plots`, `figures` and `cards` turn
evaluations into plain values, `sections` and `view` bring them together for the templates, `render`
writes the files.
"""
