"""`moeloom tune`: compile variants of a target's table, measure them where they run, write the table that won.

plan.py       what is to be measured: a directory with a plan and an artifact a variant
variants.py   makes both (needs the compiler)
journal.py    what was measured, a line each, appended as it comes
trial.py      runs variants: times and numbers (needs the runtime alone, as all below)
select.py     which of them win, by a stated rule
table.py      the table that comes out, and its reader
tune.py       the three steps in order, within a budget
"""
