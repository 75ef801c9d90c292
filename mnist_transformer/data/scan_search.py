"""MNIST's program backwards: find a scan that gives an image, all 784 bytes of it.

An image says how much area of each box pixel is ink, up to the width of one level. That makes
two searches:

1. The side m. A box pixel's area is the sum of a subset of its shares, and for a wrong m some
   level has no such subset. All sums are one number's bits: adding a share x to any subset is
   ``bits | bits << x``.
2. The ink. A variable of 0 or 1 for each scanned pixel, and a linear constraint for each box
   pixel; of all solutions the one with the shortest outline. CP-SAT of OR-Tools solves it.

Float32 rounds in ways that the constraints do not model, so the program itself has the last
word: a scan is returned only if it gives the image back.
"""

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import torch

from mnist_transformer.data.scans import BOX, IMAGE, LEAST, MOST, SIDES, to_boxes, weights

GRID = 1 << 16  # area is searched in steps of 1 / GRID,
TOLERANCE = 14  # steps; a sum of 36 rounded shares errs by less
SCALE = 1 << 24  # CP-SAT has integers alone: shares are multiples of 1 / SCALE
LEEWAY = 3e-4  # the brightest pixel may lack ink of next to no share
INFINITE = 1 << 60  # no upper bound
SLACK = 3e-6  # the most that float32 moves an area
EFFORT = 0.5  # CP-SAT's deterministic time, about seconds: the same scans on any machine
NONE = -(1 << 30)  # a scanned pixel that is paper, and so has no variable
ATTEMPTS = 12  # solutions per side whose bytes differ, before the side is given up


def to_scan(image: np.ndarray) -> np.ndarray | None:
    """A scan, bool (m, m), that MNIST's program turns into exactly this image uint8 (28, 28).

    None if none is found. Raises ModuleNotFoundError without OR-Tools (extra ``scans``).
    """
    found = itertools.starmap(solve, candidates(image))
    return next((ink for ink in found if ink is not None), None)


# --- the side --------------------------------------------------------------------------------


def candidates(image: np.ndarray) -> Iterator[tuple[np.ndarray, int, float]]:
    """Boxes (20, 20), sides and the brightest pixel's area for which every level is possible.

    Small sides come first.
    """
    if not image.any() or not _is_centred(image):
        return
    for side, (row, column) in itertools.product(SIDES, _places(image)):
        box = image[row : row + BOX, column : column + BOX]
        rows, columns = box.nonzero()
        levels, full = box[rows, columns], weights(side).sum(1)
        tops = levels == box.max()
        inked = np.unique((full[rows[tops]] * full[columns[tops]]).round(5))
        # Pixels of level 255 all have the area of the brightest; those of 254 need not.
        for most in inked[:1] if box.max() == 255 else inked[::-1]:
            kinds, can = possible(side, float(most))
            if can[kinds[rows, columns], levels].all():
                yield box, side, float(most)


def _places(image: np.ndarray) -> list[tuple[int, ...]]:
    """The corners of all boxes that hold the whole ink, the most even paper around it first.

    The program centres a scan in its square.
    """
    ends = [np.flatnonzero(image.any(axis))[[0, -1]].tolist() for axis in (1, 0)]

    def uneven(corner: tuple[int, ...]) -> int:
        pairs = zip(ends, corner, strict=True)
        return sum(abs(sum(end) - 2 * start - BOX + 1) for end, start in pairs)

    spans = [range(max(0, end - BOX + 1), min(IMAGE - BOX, start) + 1) for start, end in ends]
    return sorted(itertools.product(*spans), key=uneven)


def _is_centred(image: np.ndarray) -> bool:
    """Whether the centre of mass is where the program puts it; a box's place plays no part."""
    total, index = int(image.sum()), np.arange(IMAGE)
    masses = (int((image.sum(axis) * index).sum()) for axis in (0, 1))
    return all(abs(2 * mass - IMAGE * total) <= total for mass in masses)


@functools.lru_cache(maxsize=4096)  # 54 kB each
def possible(side: int, most: float) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each box pixel (BOX, BOX), and the levels that each kind can have (kinds, 256).

    ``most`` is the brightest pixel's area.
    """
    kinds, sums = _sums(side)
    low, high = LEAST * most / 255 * GRID - TOLERANCE, MOST * most / 255 * GRID + TOLERANCE
    ends = [(np.searchsorted(x, low), np.searchsorted(x, high, "right")) for x in sums]
    return kinds, np.stack([below < until for below, until in ends])


@functools.cache
def _sums(side: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The kind of each box pixel (BOX, BOX), and each kind's possible areas * GRID, in order."""
    shares = weights(side)
    number: dict[tuple[int, ...], int] = {}
    sums: list[np.ndarray] = []
    kinds = np.zeros((BOX, BOX), int)
    size = GRID + GRID // 64
    for row, column in np.ndindex(BOX, BOX):
        products = np.outer(shares[row][shares[row] > 0], shares[column][shares[column] > 0])
        kind = tuple(sorted(np.rint(products.astype(float) * GRID).astype(int).ravel().tolist()))
        if kind not in number:
            number[kind] = len(sums)
            bits = 1
            for product in kind:
                bits |= bits << product
            packed = np.frombuffer(bits.to_bytes(size // 8, "little"), np.uint8)
            sums.append(np.flatnonzero(np.unpackbits(packed, bitorder="little")).astype(np.int32))
        kinds[row, column] = number[kind]
    return kinds, sums


# --- the ink ---------------------------------------------------------------------------------


def solve(box: np.ndarray, side: int, most: float) -> np.ndarray | None:
    """The scan, bool (m, m), of the shortest outline that gives a box (BOX, BOX), or None."""
    puzzle = _Puzzle(box, side, most)
    for ink in puzzle.solutions():
        levels = to_boxes(torch.from_numpy(ink).byte()[None], torch.tensor([side]))[0].numpy()
        if (levels == box).all():
            return ink
        puzzle.forbid(np.argwhere(levels != box))
    return None


class _Puzzle:
    """The integer program of one box. Variable ``i`` is a number, and ``~i`` its negation."""

    def __init__(self, box: np.ndarray, side: int, most: float) -> None:
        from ortools.sat.python import cp_model

        self.model, self.solver = cp_model.CpModel(), cp_model.CpSolver()
        # Written without the wrapper: its checks take longer than most solutions.
        self.proto = self.model.proto
        self.shares = weights(side)
        touches = (self.shares > 0).astype(int)
        self.free = touches.T @ (box == 0) @ touches == 0  # all others are paper
        self.variable = np.full(self.free.shape, NONE)
        self.variable[self.free] = [self._variable() for _ in range(int(self.free.sum()))]
        self.solver.parameters.num_workers = 1
        self.solver.parameters.max_deterministic_time = EFFORT
        # The defaults leave most outlines unproved after 30 times as long.
        self.solver.parameters.linearization_level = 2
        self._demand_levels(box, most)
        self._shorten_outline()

    def solutions(self) -> Iterator[np.ndarray]:
        """Solve again and again; call ``forbid`` in between."""
        for _ in range(ATTEMPTS):
            found = self._solve() or self._solve_from_any()
            if not found:
                return
            self.ink = self.free.copy()
            self.ink[self.free] = np.array(found)[self.variable[self.free]] > 0
            yield self.ink

    def _solve(self) -> list[int]:
        """The values of all variables, none if there are none or none were found in time."""
        self.solver.solve(self.model)
        return list(self.solver.response_proto.solution)

    def _solve_from_any(self) -> list[int]:
        """Find any ink first, which is quick, and shorten its outline from there."""
        if self.solver.status_name() != "UNKNOWN":
            return []
        objective = type(self.proto.objective)()
        objective.CopyFrom(self.proto.objective)
        self.proto.ClearField("objective")
        found = self._solve()
        self.proto.objective.CopyFrom(objective)
        self.proto.solution_hint.vars[:] = range(len(found))
        self.proto.solution_hint.values[:] = found
        return found and (self._solve() or found)

    def forbid(self, pixels: np.ndarray) -> None:
        """Forbid what the last solution has in each of these box pixels (N, 2)."""
        for row, column in pixels:
            window = self._window(row, column)
            variable = self.variable[window]
            literals = np.where(self.ink[window], ~variable, variable)[variable != NONE]
            self._any(literals.tolist())

    def _variable(self, low: int = 0, high: int = 1) -> int:
        self.proto.variables.add().domain.extend([low, high])
        return len(self.proto.variables) - 1

    def _any(self, literals: list[int]) -> None:
        self.proto.constraints.add().bool_or.literals.extend(literals)

    def _window(self, row: int, column: int) -> tuple[np.ndarray, ...]:
        """The scanned pixels that a box pixel covers, in part or in full."""
        return np.ix_(np.flatnonzero(self.shares[row]), np.flatnonzero(self.shares[column]))

    def _demand_levels(self, box: np.ndarray, most: float) -> None:
        """Each area is at least, and at most, its level / 255 of the brightest one."""
        brightest = self._variable(*(int((most + sign * LEEWAY) * SCALE) for sign in (-1, 1)))
        slack = -int(255 * SLACK * SCALE)
        for row, column in np.argwhere(box > 0):
            window = self._window(row, column)
            free = self.free[window]
            if not free.any():
                continue
            products = self.shares[row][window[0]] * self.shares[column][window[1]]
            variables = [*self.variable[window][free].tolist(), brightest]
            whole = np.rint(products.astype(float) * SCALE).astype(int)[free]
            for bound, sign in ((LEAST, 1), (MOST, -1)):
                linear = self.proto.constraints.add().linear
                linear.vars.extend(variables)
                level = int(bound[box[row, column]])
                linear.coeffs.extend([*(sign * 255 * whole).tolist(), -sign * level])
                linear.domain.extend([slack, INFINITE])

    def _shorten_outline(self) -> None:
        """Minimise the pairs of neighbours that differ; around the square is paper."""
        variable = np.pad(self.variable, 1, constant_values=NONE)
        for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
            a, b = variable[first], variable[second]
            for x, y in np.stack([a, b], -1)[(a != NONE) & (b != NONE)].tolist():
                differ = self._variable()
                self._any([differ, ~x, y])
                self._any([differ, x, ~y])
                self._pay([differ])
            # Beside paper, ink itself says whether the two differ.
            self._pay(a[(a != NONE) & (b == NONE)].tolist())
            self._pay(b[(b != NONE) & (a == NONE)].tolist())

    def _pay(self, variables: list[int]) -> None:
        self.proto.objective.vars.extend(variables)
        self.proto.objective.coeffs.extend([1] * len(variables))
