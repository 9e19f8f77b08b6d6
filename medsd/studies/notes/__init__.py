"""Notes: their sections, their findings by rule, and the words that give a finding away.

Start at `sections.read_note`; `Note.before_reading` may be an input, `Note.report` only a source of labels.
"""
