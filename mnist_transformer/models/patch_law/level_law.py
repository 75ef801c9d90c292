"""Which grey levels a pixel of MNIST can have: the law that its digits were scaled by.

Every digit was a square of m x m pixels, black or white, scanned from paper; it was scaled down
to a box of 20x20 and the box laid on a canvas of 28x28 so that the ink's centre is in the middle.
A level is the ink's area in its pixel, a sum of products of the parts that scanned rows and
columns have in it, so m and the box's place decide which levels there can be: with m = 50 a pixel
holds 2.5 x 2.5 scanned ones and knows 25 areas. Yadav and Bottou (Cold case: the lost MNIST
digits, arXiv 1905.10498) found the way it was scaled, with its fault that a scanned pixel that
two pixels share is counted a hundredth of its side too small. How areas were rounded was found
here, from the levels of training images.

Neither m nor the place is given. From the levels drawn so far Bayes' rule tells how probable each
is, and so the levels of the next pixels, for each direction that the ink's edge may have there:
an upright edge leaves few levels, a slanted one many. Which direction it is the pixel head tells.
Nothing here is learned, and nothing sees what it must not, so a likelihood stays exact.

Shapes: N patches, I pixels of a patch, H hypotheses (J places of the box times Z of m and the
brightness), K of them that are looked at (L with all others as one), X = box * box cells of C
kinds, D directions, V grey levels, Y = D * V, A edges.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_transformer.networks.patches import cut

SHRUNK = 0.99  # of a scanned pixel's side, where two pixels share it
STRAY = 0.05  # share of levels that follow no law, as edges are not as straight as here
KEPT = 4  # hypotheses that are looked at, the most probable ones
DIRECTIONS = 8  # of edges, from upright to upright again
ANGLES, OFFSETS = 3, 48  # of the edges in each direction
# Of log(m / box), measured on training images, and of the box's place, in pixels.
LOG_SIDE, LOG_SIDE_SD, PLACE_SD = 0.82, 0.25, 1.3
TRANSPOSED = [(DIRECTIONS // 2 - d) % DIRECTIONS for d in range(DIRECTIONS)]  # where each goes
ROUNDING = 2e-3  # a level that is this close to a whole one may have come out on either side


class LevelLaw(nn.Module):
    """How probable each grey level is, given those drawn before.

    Args:
        image_size, patch_size, num_levels: of the images.
    """

    chance_CY: Tensor  # by kind of cell, float16; the last row is the average of all
    kind_ZX: Tensor  # the kind of each cell of the box, then of what is outside of it
    log_chance_QZ: Tensor  # Q = V * (X + 1): the logarithms by level and cell, all Z side by side
    side_Z: Tensor  # m
    cell_PIJ: Tensor  # the cell of each pixel of a patch, for each place of the box
    log_prior_H: Tensor

    def __init__(self, image_size: int, patch_size: int, num_levels: int) -> None:
        super().__init__()
        box = max(1, image_size * 5 // 7)
        margin = (image_size - box) / 2
        with torch.device("cpu"):  # "list" builds models on the meta device
            tables = _tables(box, num_levels)
            log_side_Z = -0.5 * (((tables["side_Z"] / box).log() - LOG_SIDE) / LOG_SIDE_SD) ** 2
            places_S = torch.arange(max(0, int(margin) - 2), int(margin) + 4)
            log_place_S = -0.5 * ((places_S - margin) / PLACE_SD) ** 2
            log_place_J = (log_place_S[:, None] + log_place_S).flatten()
            row_SY = torch.arange(image_size) - places_S[:, None]
            inside_SY = (row_SY >= 0) & (row_SY < box)
            cell_SSYY = row_SY[:, None, :, None] * box + row_SY[None, :, None, :]
            inside_SSYY = inside_SY[:, None, :, None] & inside_SY[None, :, None, :]
            cell_JHW = cell_SSYY.where(inside_SSYY, box * box).flatten(0, 1)
            cell_JPI = cut(cell_JHW[:, None].float(), patch_size).long()
            log_prior_H = (log_place_J[:, None] + log_side_Z).flatten().log_softmax(0)
        self.num_kinds, self.num_cells = tables["kind_ZX"].shape
        tables = tables | {
            "cell_PIJ": cell_JPI.permute(1, 2, 0).contiguous(),
            "log_prior_H": log_prior_H,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def evidence(self, own_NI: Tensor, patch_N: Tensor) -> Tensor:
        """Log-likelihood (N, H) of each hypothesis, of the levels (N, I) of these patches."""
        row_NIJ = own_NI[:, :, None] * self.num_cells + self.cell_PIJ[patch_N]
        bags = row_NIJ.transpose(1, 2).flatten(0, 1)
        return F.embedding_bag(bags, self.log_chance_QZ, mode="sum").view(
            len(own_NI), len(self.log_prior_H)
        )

    def chances(self, log_posterior_NH: Tensor, patch_N: Tensor) -> Tensor:
        """Probabilities (N, I, D, V) of the levels of these patches' pixels, by their edges.

        Args:
            log_posterior_NH: the prior plus all evidence so far, up to a constant.
        """
        log_top_NK, hypothesis_NK = log_posterior_NH.log_softmax(1).topk(
            min(KEPT, log_posterior_NH.shape[1])
        )
        place_NK = hypothesis_NK.div(self.num_kinds, rounding_mode="floor")
        cell_NIK = self.cell_PIJ[patch_N].gather(
            2, place_NK[:, None].expand(-1, self.cell_PIJ.shape[1], -1)
        )
        kind_NIK = self.kind_ZX[(hypothesis_NK % self.num_kinds)[:, None], cell_NIK]
        # What the others say together is close to what all say.
        kind_NIL = F.pad(kind_NIK, (0, 1), value=len(self.chance_CY) - 1)
        top_NK = log_top_NK.exp()
        weight_NL = torch.cat([top_NK, 1 - top_NK.sum(1, keepdim=True)], 1)
        weight_NIL = weight_NL[:, None].expand_as(kind_NIL).to(self.chance_CY.dtype)
        chance_MY = F.embedding_bag(
            kind_NIL.flatten(0, 1),
            self.chance_CY,
            mode="sum",
            per_sample_weights=weight_NIL.flatten(0, 1),
        )
        num_levels = self.chance_CY.shape[1] // DIRECTIONS
        return chance_MY.float().view(*kind_NIL.shape[:2], DIRECTIONS, num_levels)

    def before(self, own_NI: Tensor, patch_N: Tensor, num_inked_B: Tensor) -> Tensor:
        """``chances`` of all patches with ink of a batch, given those before each."""
        return self.chances(self.log_posteriors(own_NI, patch_N, num_inked_B), patch_N)

    def log_posteriors(self, own_NI: Tensor, patch_N: Tensor, num_inked_B: Tensor) -> Tensor:
        """What ``chances`` takes, (N, H), for all patches with ink, image after image."""
        image_N = torch.arange(len(num_inked_B), device=own_NI.device).repeat_interleave(
            num_inked_B
        )
        first_B = num_inked_B.cumsum(0) - num_inked_B
        place_N = torch.arange(len(own_NI), device=own_NI.device) - first_B[image_N]
        # Image by image and in the order of drawing, so that drawing comes to the same sums.
        size = (len(num_inked_B), 1 + int(num_inked_B.max()), len(self.log_prior_H))
        log_posterior_BTH = self.log_prior_H.new_zeros(size)
        log_posterior_BTH[:, 0] = self.log_prior_H
        log_posterior_BTH[image_N, place_N + 1] = self.evidence(own_NI, patch_N)
        return log_posterior_BTH.cumsum(1)[image_N, place_N]

    def sides(self, log_posterior_NH: Tensor) -> tuple[Tensor, Tensor]:
        """The values of m (M,), and how probable each is (N, M)."""
        chance_NZ = log_posterior_NH.softmax(1).unflatten(1, (-1, self.num_kinds)).sum(1)
        side_M, index_Z = self.side_Z.unique(return_inverse=True)
        return side_M, chance_NZ.new_zeros(len(chance_NZ), len(side_M)).index_add(
            1, index_Z, chance_NZ
        )


@cache
def _tables(box: int, num_levels: int) -> dict[str, Tensor]:
    """The tables of ``LevelLaw`` that do not depend on where the box lies."""
    chances, log_chances, kinds, sides = [], [], [], []
    num_rows, sum_DV = 0, torch.zeros(DIRECTIONS, num_levels)
    for side in range(math.ceil(1.1 * box), round(4.25 * box) + 1):
        areas_CDA, kind_X = _areas(side, box)
        # Often a pixel of full weight is white. Where only the first row and column of the
        # box have full weight it seldom is, and all are brightened until the brightest is.
        for losses in (0, 1) if math.gcd(side, box) > 1 else (1, 2):
            brightest = (1 - (1 - SHRUNK) * box / side) ** losses
            chance_CDV = _chances(areas_CDA, brightest, num_levels)
            kinds.append(num_rows + kind_X)
            sides.append(side)
            # Half the precision at once, as a table of all in full would take 200 MB.
            half_CDV, added_DV = chance_CDV.half(), chance_CDV.sum(0)
            chances += [half_CDV, half_CDV[:, TRANSPOSED]]
            log_chances += [chance_CDV.mean(1).log()] * 2  # of all directions together
            sum_DV += added_DV
            sum_DV += added_DV[TRANSPOSED]
            num_rows += 2 * len(chance_CDV)
    average_DV = sum_DV / num_rows
    kind_ZX = F.pad(torch.stack(kinds), (0, 1), value=num_rows)
    log_chance_VC = torch.cat([*log_chances, average_DV.mean(0, keepdim=True)]).T.contiguous()
    log_chance_VC[:, -1] = math.log(STRAY / 10 / num_levels)  # no box is where ink is outside
    log_chance_VC[0] = 0  # black tells nothing
    return {
        "chance_CY": torch.cat([*chances, average_DV.half()[None]]).flatten(1),
        "kind_ZX": kind_ZX,
        "log_chance_QZ": log_chance_VC[:, kind_ZX.T].flatten(0, 1),
        "side_Z": torch.tensor(sides),
    }


def scaling(side: int, box: int) -> Tensor:
    """Parts (box, side) that scanned rows have in the box's rows, float64."""
    scale = box / side
    number_M = torch.arange(side)
    start_M = box / 2 + scale * (number_M.double() - side / 2)
    end_M = start_M + SHRUNK * scale
    first_M = (start_M + 1e-11).floor().long()
    last_M = (end_M - 1e-11).ceil().long() - 1
    weights = torch.zeros(box, side, dtype=torch.float64)
    weights[last_M, number_M] = end_M - last_M
    weights[first_M, number_M] = torch.where(first_M == last_M, scale, first_M + 1 - start_M)
    return weights


def _areas(side: int, box: int) -> tuple[Tensor, Tensor]:
    """Ink (C, D, A) in each kind of cell by each edge, and the kind (X,) of each cell.

    Only kinds above the diagonal are there: those below it are the same, transposed, and their
    numbers begin after those of the others.
    """
    period = box // math.gcd(side, box)  # so many rows are different
    parts_RM = scaling(side, box)[:period]
    first_R = (parts_RM > 0).int().argmax(1)
    most = int((parts_RM > 0).sum(1).max())
    index_RM = first_R[:, None] + torch.arange(most)
    parts_RM = F.pad(parts_RM, (0, most)).gather(1, index_RM).float()
    areas_RRDA = torch.einsum("rm,damn,sn->rsda", parts_RM, _edges(most).float(), parts_RM)
    row_C, column_C = torch.triu_indices(period, period)
    number_C = torch.arange(len(row_C))
    kind_RR = torch.empty(period, period, dtype=torch.long)
    kind_RR[column_C, row_C] = len(row_C) + number_C
    kind_RR[row_C, column_C] = number_C
    repeats = box // period
    return areas_RRDA[row_C, column_C], kind_RR.repeat(repeats, repeats).flatten()


def _chances(areas_CDA: Tensor, brightest: float, num_levels: int) -> Tensor:
    """Probabilities (C, D, V) of the levels of each kind of cell.

    They are those of ink with a straight edge of a direction at any distance.

    Args:
        areas_CDA: see ``_areas``.
        brightest: the area of the brightest pixel, which is white.
    """
    shades = areas_CDA * (num_levels - 1) / brightest
    chances_CDV = torch.full((*areas_CDA.shape[:2], num_levels), 1e-6)
    for noise in (-ROUNDING, ROUNDING):
        levels = torch.where(
            shades > (num_levels - 1) / 2, (shades + noise).floor(), (shades + noise).ceil()
        )
        levels = levels.clamp(0, num_levels - 1).long()
        chances_CDV.scatter_add_(-1, levels, torch.ones_like(shades))
    chances_CDV[..., 0] = 0  # whether there is ink at all is another question
    chances_CDV = chances_CDV / chances_CDV.sum(-1, keepdim=True)
    return (1 - STRAY) * chances_CDV + STRAY / num_levels


def _edges(size: int) -> Tensor:
    """Black or white squares (D, A, size, size), on one side of a straight line each."""
    number_DGS = torch.arange(DIRECTIONS * ANGLES).view(DIRECTIONS, ANGLES, 1) - (ANGLES - 1) / 2
    angle = (number_DGS / (DIRECTIONS * ANGLES) + torch.arange(2)) * math.pi  # and inside out
    # A little to the side, as no pixel's centre may lie on an edge.
    offset = ((torch.arange(OFFSETS) + 0.5) / OFFSETS - 0.5) * 1.44 * size - 1e-4
    at = torch.arange(size) - (size - 1) / 2
    angle = angle.flatten(1)[..., None, None]
    along = at[:, None] * angle.sin() + at * angle.cos()  # (D, angles, size, size)
    return (along[:, :, None] < offset[:, None, None]).flatten(1, 2)
