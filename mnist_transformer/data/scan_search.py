"""MNIST's program backwards: find a scan that gives an image, all 784 bytes of it.

An image tells how much of each box pixel's area is ink, to within one level. Two searches
follow:

1. The side m. A box pixel's area is the sum of a subset of its shares, and for a wrong m some
   level has no such subset. All sums are the bits of one number: adding a share x to any subset is
   ``bits | bits << x``.
2. The ink. A variable of 0 or 1 for each scanned pixel, and a linear constraint for each box
   pixel; of all solutions the one with the shortest outline. CP-SAT of OR-Tools solves it.

Float32 rounds in ways that the constraints do not model, so the program itself has the last
word: a scan is returned only if it gives the image back.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from mnist_transformer.data.scans import BOX, LEAST, MOST, SIDES, to_boxes, to_images, weights

GRID = 1 << 16  # area is searched in steps of 1 / GRID,
TOLERANCE = 14  # steps; a sum of 36 rounded shares errs by less
SCALE = 1 << 24  # CP-SAT has integers alone: shares are multiples of 1 / SCALE
LEEWAY = 3e-4  # the brightest pixel may lack ink whose share is almost zero
LEAST_AREA = 0.93  # the least area of a brightest pixel that lacks ink
RARE_SIDES = range(SIDES.start, 75)  # larger ones have a sum for nearly every level
RARE_PLACES = 5  # the likeliest, of a box that may reach beyond the image
INFINITE = 1 << 60  # no upper bound
SLACK = 3e-6  # the most by which float32 changes an area
EFFORT = 0.5  # CP-SAT's deterministic time, about seconds: the same scans on any machine
NONE = -(1 << 30)  # a scanned pixel that is paper, and so has no variable
HIDDEN = -1  # the level of a box pixel beyond the image
FAINT = 1e-8  # an area that no level shows, as the next float32 above -128 is further off
ATTEMPTS = 12  # solutions per side whose bytes differ, before the side is given up


Candidate = tuple[int, int, int, float, float]
"""A side, the row and column of the box, and bounds of the brightest pixel's area."""


def to_scan(image: np.ndarray) -> np.ndarray | None:
    """A scan, bool (m, m), that MNIST's program turns into exactly this image uint8 (28, 28).

    None if none is found. Raises ModuleNotFoundError without OR-Tools (extra ``scans``).
    """
    return search(image, itertools.chain(usual(image), rare(image)))


def search(image: np.ndarray, candidates: Iterable[Candidate]) -> np.ndarray | None:
    """The scan of the first candidate that has one, as ``to_scan`` gives it."""
    for side, row, column, least, most in candidates:
        box = _box(image, row, column)
        puzzle = _Puzzle(box, side, least, most)
        for ink in puzzle.solutions():
            scan, sides = torch.from_numpy(ink).byte()[None], torch.tensor([side])
            wrong = (to_boxes(scan, sides)[0].numpy() != box) & (box > HIDDEN)
            if wrong.any():
                puzzle.forbid(np.argwhere(wrong))
            elif (to_images(scan, sides)[0, 0].numpy() == image).all():
                return ink
            else:  # the program would put this box elsewhere
                break
    return None


# --- the side --------------------------------------------------------------------------------


def usual(image: np.ndarray) -> Iterator[Candidate]:
    """Sides and places for which every level of an image (28, 28) is possible, small m first.

    The box lies within the image, and its brightest pixel is full of ink.
    """
    places = [place for place in _places(image) if _box(image, *place).min() > HIDDEN]
    for side, place in itertools.product(SIDES, places):
        box = _box(image, *place)
        full = np.outer(*2 * [weights(side).sum(1)])[box == box.max()]
        areas = np.unique(full.round(5))
        # Pixels of level 255 all have the area of the brightest; those of 254 need not.
        for area in _possible(box, side, areas[:1] if box.max() == 255 else areas[::-1]):
            yield side, *place, area - LEEWAY, area + LEEWAY


def rare(image: np.ndarray) -> Iterator[Candidate]:
    """As ``usual``, but a box may reach beyond the image, and its brightest pixel lack ink."""
    for place, side in itertools.product(_places(image)[:RARE_PLACES], RARE_SIDES):
        box = _box(image, *place)
        kinds, sums = _sums(side)
        areas = np.concatenate([sums[kind] for kind in set(kinds[box == box.max()])])
        areas = _possible(box, side, np.unique(areas[areas > LEAST_AREA * GRID]) / GRID)
        if len(areas):
            yield side, *place, areas[0] - LEEWAY, areas[-1] + LEEWAY


def _box(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """The levels (BOX, BOX) of a box whose corner is here, ``HIDDEN`` beyond the image."""
    wide = np.pad(image.astype(int), BOX, constant_values=HIDDEN)
    return wide[row + BOX : row + 2 * BOX, column + BOX : column + 2 * BOX]


def _possible(box: np.ndarray, side: int, areas: np.ndarray) -> np.ndarray:
    """The areas of the brightest pixel for which every level of a box is a sum of shares."""
    kinds, sums = _sums(side)
    low, high = LEAST / 255 * GRID, MOST / 255 * GRID
    pairs = set(zip(kinds[box > 0].tolist(), box[box > 0].tolist(), strict=True))
    # The kinds with the fewest sums rule out the most.
    for kind, level in sorted(pairs, key=lambda pair: len(sums[pair[0]])):
        first = np.searchsorted(sums[kind], areas * low[level] - TOLERANCE, "left")
        end = np.searchsorted(sums[kind], areas * high[level] + TOLERANCE, "right")
        areas = areas[end > first]
        if not len(areas):
            break
    return areas


def _places(image: np.ndarray) -> list[tuple[int, int]]:
    """The corners of all boxes that hold the whole ink, the likeliest first.

    A scan is centred in its square, so the likeliest place has the most even margins.
    """
    if not image.any():
        return []
    ends = [np.flatnonzero(image.any(axis))[[0, -1]].tolist() for axis in (1, 0)]
    rows, columns = (range(last - BOX + 1, first + 1) for first, last in ends)
    places = itertools.product(rows, columns)

    def uneven(place: tuple[int, int]) -> int:
        pairs = zip(ends, place, strict=True)
        return sum(abs(first + last - 2 * start - BOX + 1) for (first, last), start in pairs)

    # The program centres the mass of a box; one that reaches beyond the image has hidden ink.
    total, size = int(image.sum()), len(image)
    masses = (int((image.sum(axis) * np.arange(size)).sum()) for axis in (0, 1))
    is_centred = all(abs(2 * mass - size * total) <= total for mass in masses)
    within = set(range(size - BOX + 1))
    return sorted((x for x in places if is_centred or not within.issuperset(x)), key=uneven)


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


class _Puzzle:
    """The integer program of one box (BOX, BOX), whose brightest area is ``least`` to ``most``.

    Variable ``i`` is a number, and ``~i`` its negation.
    """

    def __init__(self, box: np.ndarray, side: int, least: float, most: float) -> None:
        from ortools.sat.python import cp_model

        self.model, self.solver = cp_model.CpModel(), cp_model.CpSolver()
        # Written without the wrapper: its checks take longer than most solutions.
        self.proto = self.model.proto
        self.shares = weights(side)
        self.free = self.shares.T @ (box == 0) @ self.shares < FAINT  # all others are paper
        self.variable = np.full(self.free.shape, NONE)
        self.variable[self.free] = [self._variable() for _ in range(int(self.free.sum()))]
        self.solver.parameters.num_workers = 1
        self.solver.parameters.max_deterministic_time = EFFORT
        # The defaults leave most outlines unproved after 30 times as long.
        self.solver.parameters.linearization_level = 2
        self._demand_levels(box, least, most)
        self._shorten_outline()

    def solutions(self) -> Iterator[np.ndarray]:
        """Scans, bool (m, m), of the shortest outlines found; call ``forbid`` in between."""
        for _ in range(ATTEMPTS):
            found = self._solve() or self._solve_from_any()
            if not found:
                return
            self.ink = self.free.copy()
            self.ink[self.free] = np.array(found)[self.variable[self.free]] > 0
            yield self.ink

    def _solve(self) -> list[int]:
        """The values of all variables; [] if no solution exists, or none was found in time."""
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
        """Forbid the last solution's ink within each of these box pixels (N, 2)."""
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

    def _demand_levels(self, box: np.ndarray, least: float, most: float) -> None:
        """Bound each area, from below and above, by its level / 255 of the brightest one."""
        brightest = self._variable(int(least * SCALE), int(most * SCALE))
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
        """Minimise the number of neighbours that differ; paper surrounds the square."""
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
