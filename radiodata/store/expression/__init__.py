"""Filter expressions over table columns: ``age > 40 and sex == 'F'``.

An expression is parsed to a tree of the few nodes below and evaluated on whole columns; it is never run as Python.

::

    either      both ("or" both)*
    both        negated ("and" negated)*
    negated     "not" negated | predicate
    predicate   operand (compare operand)+            18 <= age < 65
              | operand ["not"] "in" [ literal, ... ]
              | operand "is" ["not"] "null"
              | operand ["not"] "between" operand "and" operand
              | operand ["not"] ("contains" | "startswith" | "endswith") text
              | column                                a column of booleans
              | "(" either ")"
    operand     column | number | 'text' | true | false | date 'YYYY-MM-DD'

Keywords in any case; ``&``, ``|`` and ``~`` stand for and, or, not, with the precedence of the words. ```body weight```
names a column that is no identifier, ``CT.spacing_z`` one of a collection. As in SQL, what is compared with a null is
neither true nor false: ``age > 40`` and ``not age > 40`` both leave out rows without an age.
"""

from radiodata.store.expression.parser import LONGEST, parse
from radiodata.store.expression.tree import Expression, unknown_column

__all__ = ["LONGEST", "Expression", "parse", "unknown_column"]
