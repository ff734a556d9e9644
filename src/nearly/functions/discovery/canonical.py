"""The canonical form of a tape, for compiled code: what makes disguises of one structure equal.

Sums and products are two groups with the same rules: ADD and MUL combine, SUB and DIV (the next
code) combine with the inverse. A rule either removes an instruction or a constant, or moves a
constant outwards; so applying them ends.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numpy as np

from nearly.functions.discovery.kernels import ADD, DIV, MUL, SQRT, SUB, compiled

GONE = -1  # the operation of an instruction that does not depend on x; left holds its constant
UNSEEN = -1


class Draft(NamedTuple):
    """A tape that is being rewritten in place, with room for more constants.

    **Arguments:**

    - `operations`, `left`, `right`: as in a `Tape`, though operands may be later instructions.
    - `values`: (capacity,) constants; the first `used[0]` are in use.
    - `uses`: (n,) at least how often each instruction is an operand.
    """

    operations: np.ndarray
    left: np.ndarray
    right: np.ndarray
    values: np.ndarray
    used: np.ndarray
    uses: np.ndarray


@compiled
@no_type_check
def canonical(operations, left, right, constants):
    """`Tape.canonical` on arrays, for compiled code; new arrays. Costs a few microseconds."""
    operations, left, right, values = ordered(operations, left, right, constants)
    for _ in range(4 * operations.size + 4):
        draft = drafted(operations, left, right, values)
        changed = simplify(draft)
        operations, left, right, values = ordered(
            draft.operations, draft.left, draft.right, draft.values
        )
        if not changed:
            break
    return operations, left, right, values


@compiled
@no_type_check
def drafted(operations, left, right, constants):
    n, m = operations.size, constants.size
    values = np.empty(m + 2 * n)
    values[:m] = constants
    uses = np.zeros(n, np.int64)
    for j in range(n):
        count_use(left[j], uses)
        count_use(right[j], uses)
    return Draft(
        operations.copy(), left.copy(), right.copy(), values, np.full(1, m, np.int64), uses
    )


@compiled
@no_type_check
def count_use(operand, uses):
    if operand >= 0:
        uses[operand] += 1


@compiled
@no_type_check
def is_constant(operand):
    return operand <= -2


@compiled
@no_type_check
def simplify(draft):
    """Apply the rules once to each instruction; whether one applied."""
    operations, left, right = draft.operations, draft.left, draft.right
    n = operations.size
    alias = np.arange(n)
    changed = False
    for j in range(n):
        left[j], right[j] = resolved(left[j], alias), resolved(right[j], alias)
        changed = rewrite(draft, j) or changed
        if operations[j] == GONE:
            alias[j] = left[j]
            continue
        twin = earlier_twin(draft, j)
        if twin >= 0:
            alias[j] = twin
            draft.uses[twin] += draft.uses[j]
            changed = True
    root = alias[n - 1] if n else 0
    if n and 0 <= root < n - 1:
        operations[n - 1], left[n - 1], right[n - 1] = operations[root], left[root], right[root]
    return changed


@compiled
@no_type_check
def resolved(operand, alias):
    return np.int16(alias[operand]) if operand >= 0 else np.int16(operand)


@compiled
@no_type_check
def earlier_twin(draft, j):
    operations, left, right = draft.operations, draft.left, draft.right
    for i in range(j):
        if operations[i] != operations[j]:
            continue
        if left[i] == left[j] and right[i] == right[j]:
            return i
        swapped = left[i] == right[j] and right[i] == left[j]
        if swapped and operations[j] in (ADD, MUL):
            return i
    return -1


@compiled
@no_type_check
def rewrite(draft, j):
    """Try the rules on one instruction; whether one applied."""
    operation, a, b = draft.operations[j], draft.left[j], draft.right[j]
    if operation == GONE:
        return False
    if operation >= SQRT:
        return is_constant(a) and fold(draft, j, unary(operation, draft.values[-2 - a]))
    if is_constant(a) and is_constant(b):
        value = combined(operation, draft.values[-2 - a], draft.values[-2 - b])
        return fold(draft, j, value)
    if a == b and operation in (SUB, DIV):
        return fold(draft, j, 0.0 if operation == SUB else 1.0)
    group = ADD if operation <= SUB else MUL
    if is_constant(b) and operation != group:
        return put(draft, j, group, a, invented(draft, inverse(group, draft.values[-2 - b])))
    if is_constant(a) and operation == group:
        draft.left[j], draft.right[j] = b, a
        return constant_right(draft, j, group)
    if is_constant(b):
        return constant_right(draft, j, group)
    if is_constant(a):
        return constant_left(draft, j, group)
    return pull(draft, j, group, 0) or pull(draft, j, group, 1)


@compiled
@no_type_check
def unary(operation, value):
    return np.sqrt(value) if operation == SQRT else -value


@compiled
@no_type_check
def combined(operation, a, b):
    if operation == ADD:
        return a + b
    if operation == SUB:
        return a - b
    return a * b if operation == MUL else a / b


@compiled
@no_type_check
def inverse(group, value):
    return -value if group == ADD else 1.0 / value


@compiled
@no_type_check
def fold(draft, j, value):
    draft.left[j] = invented(draft, value)
    draft.operations[j] = GONE
    return True


@compiled
@no_type_check
def invented(draft, value):
    """The operand of a new constant."""
    draft.values[draft.used[0]] = value
    draft.used[0] += 1
    return np.int16(-1 - draft.used[0])


@compiled
@no_type_check
def put(draft, j, operation, a, b):
    draft.operations[j], draft.left[j], draft.right[j] = operation, a, b
    count_use(a, draft.uses)
    count_use(b, draft.uses)
    return True


@compiled
@no_type_check
def parts(draft, i):
    """Operation, other operand and constant of an instruction with one constant.

    The operation tells a + c from c - a and a * c from c / a; it is `GONE` where there is no such
    form.
    """
    if i < 0 or draft.operations[i] >= SQRT or draft.operations[i] == GONE:
        return GONE, np.int16(0), np.int16(0)
    operation, a, b = draft.operations[i], draft.left[i], draft.right[i]
    if is_constant(a) == is_constant(b):
        return GONE, np.int16(0), np.int16(0)
    if is_constant(a):
        return operation, b, a
    if operation in (SUB, DIV):
        return GONE, np.int16(0), np.int16(0)
    return operation, a, b


@compiled
@no_type_check
def constant_right(draft, j, group):
    """a + c or a * c, where `a` has a constant of its own."""
    i, c = draft.left[j], draft.values[-2 - draft.right[j]]
    inner, a, code = parts(draft, i)
    if inner == GONE:
        return False
    own = draft.values[-2 - code]
    if inner == group:  # (a + c') + c
        return put(draft, j, group, a, invented(draft, combined(group, own, c)))
    if inner == group + 1:  # (c' - a) + c
        return put(draft, j, inner, invented(draft, combined(group, own, c)), a)
    if draft.uses[i] != 1:
        return False
    if group == ADD and inner == MUL and own != 0:  # a c' + c = (a + c / c') c'
        put(draft, i, ADD, a, invented(draft, c / own))
        return put(draft, j, MUL, i, code)
    if group == MUL and inner == SUB:  # (c' - a) c = (a - c') (-c)
        put(draft, i, ADD, a, invented(draft, -own))
        return put(draft, j, MUL, i, invented(draft, -c))
    return False


@compiled
@no_type_check
def constant_left(draft, j, group):
    """c - b or c / b, where `b` has a constant of its own."""
    c, i = draft.values[-2 - draft.left[j]], draft.right[j]
    inner, b, code = parts(draft, i)
    if inner == GONE:
        return False
    own = draft.values[-2 - code]
    if inner >= MUL and own == 0:
        return False
    if inner == group:  # c - (b + c')
        return put(draft, j, group + 1, invented(draft, combined(group + 1, c, own)), b)
    if inner == group + 1:  # c - (c' - b)
        return put(draft, j, group, b, invented(draft, combined(group + 1, c, own)))
    if draft.uses[i] != 1:
        return False
    if group == ADD and inner == MUL:  # c - b c' = (b - c / c') (-c')
        put(draft, i, ADD, b, invented(draft, -c / own))
        return put(draft, j, MUL, i, invented(draft, -own))
    if group == MUL and inner == SUB:  # c / (c' - b) = -c / (b - c')
        put(draft, i, ADD, b, invented(draft, -own))
        return put(draft, j, DIV, invented(draft, -c), i)
    return False


@compiled
@no_type_check
def pull(draft, j, group, side):
    """Two operands without x's constants, one of which is a + c or c - a and used nowhere else.

    Its instruction then combines the two, and this one adds the constant, where it can meet those
    that come after; likewise for factors.
    """
    i = draft.left[j] if side == 0 else draft.right[j]
    other = draft.right[j] if side == 0 else draft.left[j]
    inner, a, code = parts(draft, i)
    if inner == GONE or inner < group or inner > group + 1 or draft.uses[i] != 1:
        return False
    inverted = draft.operations[j] != group
    outer_negative = inverted and side == 1  # the operand is subtracted
    other_negative = inverted and side == 0
    own_negative = (inner != group) != outer_negative
    c = draft.values[-2 - code]
    if outer_negative and group == MUL and c == 0:
        return False
    constant = invented(draft, inverse(group, c)) if outer_negative else code
    if own_negative and other_negative:
        put(draft, i, group, a, other)
        return put(draft, j, group + 1, constant, i)
    if own_negative:
        put(draft, i, group + 1, other, a)
    else:
        put(draft, i, group + 1 if other_negative else group, a, other)
    return put(draft, j, group, i, constant)


# ------------------------------------------------------------------------------ order and digest


@compiled
@no_type_check
def ordered(operations, left, right, values):
    """The live instructions in canonical order, constants in the order of their first use.

    Operands of sums and products are ordered by keys that say what is computed from what, and what
    it is used for; constants stand on the right of them.
    """
    n = operations.size
    if n == 0 or operations[n - 1] == GONE:
        return operations[:0].copy(), left[:0].copy(), right[:0].copy(), values[:0].copy()
    left, right = left.copy(), right.copy()
    order = postorder(operations, left, right)
    keys = node_keys(operations, left, right, order, values.size)
    for i in order:
        commutes = operations[i] in (ADD, MUL)
        if commutes and comes_after(left[i], right[i], keys):
            left[i], right[i] = right[i], left[i]
    return renumbered(operations, left, right, values, postorder(operations, left, right))


@compiled
@no_type_check
def comes_after(a, b, keys):
    if is_constant(a) != is_constant(b):
        return is_constant(a)
    return a != b and keys[a] > keys[b]


@compiled
@no_type_check
def postorder(operations, left, right):
    """The live instructions, operands first, left before right."""
    n = operations.size
    order, stack = np.empty(n, np.int64), np.empty(2 * n + 1, np.int64)
    state = np.zeros(n, np.int8)
    found, top = 0, 0
    stack[0] = n - 1
    while top >= 0:
        i = stack[top]
        if state[i] == 0:
            state[i] = 1
            for operand in (right[i], left[i]):
                if operand >= 0 and state[operand] == 0:
                    top += 1
                    stack[top] = operand
            continue
        top -= 1
        if state[i] == 1:
            state[i] = 2
            order[found] = i
            found += 1
    return order[:found]


@compiled
@no_type_check
def renumbered(operations, left, right, values, order):
    n, count = order.size, 0
    place = np.full(operations.size, UNSEEN, np.int64)
    number = np.full(values.size, UNSEEN, np.int64)
    codes, operands = np.empty(n, np.int8), np.empty((2, n), np.int16)
    kept = np.empty(values.size)
    for j in range(n):
        i = order[j]
        place[i] = j
        codes[j] = operations[i]
        for side in range(2):
            operand = left[i] if side == 0 else right[i]
            if operand >= 0:
                operand = place[operand]
            elif is_constant(operand):
                k = -2 - operand
                if number[k] == UNSEEN:
                    number[k] = count
                    kept[count] = values[k]
                    count += 1
                operand = -2 - number[k]
            operands[side, j] = operand
    return codes, operands[0], operands[1], kept[:count].copy()


@compiled
@no_type_check
def mixed(a, b):
    """Two words into one (the finaliser of splitmix64)."""
    z = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
@no_type_check
def node_keys(operations, left, right, order, constants):
    """A word for each operand, the same however instructions and constants are numbered.

    Upwards from x it gathers what is computed, then downwards what that is used for, then upwards
    again with constants told apart by their uses. Indexed by operands: negative ones from the end.
    """
    n = operations.size
    size = n + constants + 1
    keys, context = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    keys[-1] = np.uint64(1)
    gather_keys(operations, left, right, order, keys)
    for t in range(order.size - 1, -1, -1):
        i = order[t]
        commutes = operations[i] in (ADD, MUL)
        seen = mixed(context[i], keys[i])
        context[left[i]] += mixed(seen, np.uint64(3))
        context[right[i]] += mixed(seen, np.uint64(3) if commutes else np.uint64(5))
    for i in range(size):
        keys[i] = mixed(keys[i], context[i])
    gather_keys(operations, left, right, order, keys)
    return keys


@compiled
@no_type_check
def gather_keys(operations, left, right, order, keys):
    for i in order:
        a, b = keys[left[i]], keys[right[i]]
        if operations[i] in (ADD, MUL) and a > b:
            a, b = b, a
        keys[i] = mixed(mixed(mixed(keys[i], np.uint64(operations[i] + 7)), a), b)


@compiled
@no_type_check
def digest(operations, left, right):
    """A 64-bit hash of a structure, of a canonical one to tell it from others."""
    word = np.uint64(operations.size)
    for i in range(operations.size):
        packed = (np.uint64(operations[i]) << np.uint64(32)) | (
            np.uint64(left[i] + 16384) << np.uint64(16)
        )
        word = mixed(word, packed | np.uint64(right[i] + 16384))
    return word
