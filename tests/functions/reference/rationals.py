"""Minimax errors of rationals by an implementation that shares nothing with nearly's.

Run: python rationals.py > rationals.csv            (mpmath alone; a minute)
Columns: function, first end, last end, numerator degree, denominator degree, relative error.

The method is the Remez algorithm in the form of Pachon and Trefethen (BIT 49, 2009), where ours is
Newton's: on a reference the levelled error is an eigenvalue of a generalised eigenproblem, and the
one whose denominator keeps its sign is taken. The basis is Chebyshev's, the arithmetic mpmath's at
70 digits, the extrema are found by golden sections. Rows with variable u: the function of x is odd,
f(x) = x g(x^2), and g is approximated on the square of the domain, in relative error just the same.
"""

from collections.abc import Callable

from mpmath import mp, mpf

mp.dps = 70


def chebyshev(t: mpf, degree: int) -> list[mpf]:
    values = [mpf(1), t]
    for _ in range(degree - 1):
        values.append(2 * t * values[-1] - values[-2])
    return values[: degree + 1]


def levelled(f: Callable[[mpf], mpf], points: list[mpf], m: int, n: int) -> list[tuple]:
    """All (E, p, q) with p / (f q) - 1 = +E, -E, … on m + n + 2 points of [-1, 1]."""
    count = m + n + 2
    above = mp.matrix([[v / f(t) for v in chebyshev(t, m)] for t in points])
    below = mp.matrix([chebyshev(t, n) for t in points])
    signed = mp.matrix([[(-1) ** i * v for v in chebyshev(t, n)] for i, t in enumerate(points)])
    q_full, r_full = mp.qr(above)
    null = q_full[:, m + 1 : count].T
    a, b = null * below, null * signed
    # null (below q + E signed q) = 0
    # The levels differ by many powers of ten, those wanted being the largest of the inverse.
    inverses, vectors = mp.eig(-mp.inverse(a) * b)
    values = [1 / value for value in inverses]
    solutions = []
    for k, value in enumerate(values):
        if abs(mp.im(value)) > mpf(10) ** -40:
            continue
        level = mp.re(value)
        q = mp.matrix([mp.re(vectors[j, k] / max(vectors[:, k], key=abs)) for j in range(n + 1)])
        right = below * q + level * (signed * q)
        projected = q_full[:, : m + 1].T * right
        p = mp.lu_solve(r_full[: m + 1, : m + 1], projected)
        solutions.append((level, p, q))
    return solutions


def value(coefficients: mp.matrix, t: mpf) -> mpf:
    basis = chebyshev(t, len(coefficients) - 1)
    return mp.fsum(c * v for c, v in zip(coefficients, basis, strict=True))


def peak(size: Callable[[mpf], mpf], a: mpf, b: mpf) -> mpf:
    ratio = (mp.sqrt(5) - 1) / 2
    for _ in range(36):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        a, b = (a, d) if size(c) > size(d) else (c, b)
    return (a + b) / 2


def extrema(error: Callable[[mpf], mpf], count: int) -> list[mpf]:
    grid = [-mp.cos(mp.pi * i / (10 * count)) for i in range(10 * count + 1)]
    sizes = [error(t) for t in grid]
    found: list[mpf] = []
    start = 0
    for i in range(1, len(grid) + 1):
        if i == len(grid) or sizes[i] * sizes[start] < 0:
            top = max(range(start, i), key=lambda j: abs(sizes[j]))
            if 0 < top < len(grid) - 1:
                found.append(peak(lambda t: abs(error(t)), grid[top - 1], grid[top + 1]))
            else:
                found.append(grid[top])
            start = i
    return found


def best(f: Callable[[mpf], mpf], a: str, b: str, m: int, n: int) -> mpf:
    low, high = mp.mpf(mp.mpmathify(a)), mp.mpf(mp.mpmathify(b))

    def g(t: mpf) -> mpf:
        return f((low + high) / 2 + (high - low) / 2 * t)

    count = m + n + 2
    points = [-mp.cos(mp.pi * i / (count - 1)) for i in range(count)]
    for _ in range(30):
        candidates = []
        for level, p, q in levelled(g, points, m, n):
            signs = {mp.sign(value(q, mpf(i) / 60)) for i in range(-60, 61)}
            if len(signs) == 1:
                candidates.append((level, p, q))
        level, p, q = min(candidates, key=lambda item: abs(item[0]))

        def error(t: mpf, p: mp.matrix = p, q: mp.matrix = q) -> mpf:
            return value(p, t) / (value(q, t) * g(t)) - 1

        points = extrema(error, count)
        if len(points) != count:
            raise ArithmeticError(f"{len(points)} extrema, not {count}")
        largest = max(abs(error(t)) for t in points)
        if largest < abs(level) * (1 + mpf(10) ** -6):
            return largest
    raise ArithmeticError("no convergence")


def odd(f: Callable[[mpf], mpf]) -> Callable[[mpf], mpf]:
    return lambda u: f(mp.sqrt(u)) / mp.sqrt(u) if u > mpf(10) ** -60 else mp.diff(f, 0)


def rows() -> list[tuple]:
    found = []
    for total in range(1, 13):
        for n in range(1, total + 1):
            found.append(("exp2", "", lambda x: mpf(2) ** x, "0", "1", total - n, n))
    for m, n in ((0, 1), (1, 1), (2, 1), (2, 2), (3, 3)):
        found.append(("atan", "u", odd(mp.atan), "0", "1", m, n))
        found.append(("tanh", "u", odd(mp.tanh), "0", "1", m, n))
        found.append(("erf", "u", odd(mp.erf), "0", "1", m, n))
    for m, n in ((1, 1), (2, 2), (3, 3), (4, 4)):
        found.append(("log2", "", lambda x: mp.log(x, 2), "2", "4", m, n))
        found.append(("cbrt", "", mp.cbrt, "1", "8", m, n))
    return found


if __name__ == "__main__":
    for name, variable, f, a, b, m, n in rows():
        print(f"{name},{variable},{a},{b},{m},{n},{mp.nstr(best(f, a, b, m, n), 8)}", flush=True)
