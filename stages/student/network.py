"""The student network: a picture's cells and a text's word pieces through one Transformer.

Letters: N pictures, B picture-text pairs, T word pieces, C cells, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    ResNetConfig,
)
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

from boxless.errors import BoxlessError
from stages.student.fusion.last_layer import OutputPlaces, run_last_layer
from stages.student.fusion.one_picture import FirstInputs, first_outputs
from stages.student.fusion.text_encoder import encode_texts
from stages.student.heads import (
    AlignHead,
    ContrastiveHead,
    ItmHead,
    LinearItmHead,
    MlmHead,
    ObjectHead,
    TiedMlmHead,
    weighted_mean,
)
from stages.student.network_config import StudentNetConfig
from stages.student.outputs import Cells, Hidden, StudentOutput
from stages.student.pretrained_model import StudentPreTrainedModel
from stages.student.query_bank import QueryBank
from stages.student.text.token_types import IMAGE_TOKEN_TYPE
from stages.student.vision.grid import Grid, cells_inside, sine_positions
from stages.student.vision.image_transforms import normalise
from stages.student.vision.neck_config import neck_from_json
from stages.student.vision.soho_neck import SohoNeck, cells_inside_released, padding_aware_positions
from stages.student.vision.visual_dictionary import Dictionary

SOHO_NORM_EPS = 1e-5
TRACED = ("output_attentions", "output_hidden_states")
"""What transformers' models give on request, and `trace_attention` of this one."""


class Student(StudentPreTrainedModel):
    """CNN grid, text embeddings, fusion, and a head for each objective."""

    def __init__(self, config: StudentNetConfig) -> None:
        super().__init__(config)
        bert = BertConfig(**config.bert)
        bert._attn_implementation = "sdpa"
        hidden = bert.hidden_size
        neck = neck_from_json(config.neck)
        self.grid = Grid(
            ResNetConfig(**config.resnet),
            hidden,
            frozen_stages=config.frozen_stages,
            batch_norm=config.batch_norm,
            bias=neck.kind == "plain",
            drop_edge=neck.kind == "soho" and neck.drop_edge,
            pooling=config.cell_pooling,
            stages=config.cell_stages,
        )
        self.neck = SohoNeck(neck, hidden) if neck.kind == "soho" else None
        eps = SOHO_NORM_EPS if self.neck else bert.layer_norm_eps
        self.cell_norm = nn.LayerNorm(hidden, eps=eps)
        self.cell_dropout = nn.Dropout(bert.hidden_dropout_prob)
        self.visual_mask_embedding = nn.Parameter(
            torch.zeros(hidden), requires_grad=config.visual_mask_embedding == "learned"
        )
        self.embeddings = BertEmbeddings(bert)
        self.fusion = BertEncoder(bert)
        self.mlm_head = (
            TiedMlmHead() if config.mlm_head == "tied" else MlmHead(hidden, bert.vocab_size)
        )
        self.itm_head = LinearItmHead(hidden) if config.itm_head == "linear" else ItmHead(hidden)
        self.object_head = ObjectHead(hidden, max(1, len(config.label_names)), config.feature_size)
        self.align_head = AlignHead(config.pra_temperature, hidden, config.pra_size)
        self.contrastive_head = (
            ContrastiveHead(
                hidden,
                config.itc_size,
                bert.num_attention_heads if config.itc_pooling == "attention" else 0,
                config.itc_temperature,
                len(config.itc_text_layers),
                config.itc_dropout,
                QueryBank(config.itc_bank_size, config.itc_size, config.itc_bank_temperature)
                if config.itc_bank_size
                else None,
            )
            if config.itc_size
            else None
        )
        self.post_init()

    @property
    def word_embeddings(self) -> torch.Tensor:
        """The word embedding matrix [V, D], which the MLM head shares."""
        return self.embeddings.word_embeddings.weight

    @property
    def dictionary(self) -> Dictionary | None:
        """The visual dictionary, where the neck has one."""
        return self.neck.dictionary if self.neck else None

    @property
    def query_bank(self) -> QueryBank | None:
        """The contrastive head's bank of training pairs, where it has one."""
        return self.contrastive_head.bank if self.contrastive_head else None

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        sizes_px: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> StudentOutput | tuple[Any, ...]:
        """What `StudentProcessor` makes of pictures and texts -> do they belong together?

        pixel_values [N, 3, H, W], sizes_px [N, 2] (height, width before padding), input_ids and
        token_type_ids [B, T]. As many pictures as texts are pairs; one picture is looked at by all
        texts. Other pairings, and what pretraining needs, go by `encode_image` and `fuse`. With
        `return_dict` False a tuple: the output's values in order. Raises ValueError on other
        numbers of pictures and texts, on none, on tensors of other shapes, and on what else
        transformers' models can be asked for (`others`).
        """
        self._check_others(others)
        pixel_values, sizes_px, input_ids = self._checked(pixel_values, sizes_px, input_ids)
        cells = self.encode_image(pixel_values, sizes_px)
        numbers = torch.arange(len(input_ids), device=input_ids.device)
        picture = numbers.clamp(max=len(pixel_values) - 1)
        hidden = self.fuse(
            cells, picture=picture, input_ids=input_ids, token_type_ids=token_type_ids
        )
        output = StudentOutput(
            logits=self.itm_head(hidden.text[:, 0]),
            text=hidden.text,
            cells=hidden.cells,
            inside=cells.inside[picture],
        )
        return output.to_tuple() if return_dict is False else output

    def _check_others(self, others: dict[str, Any]) -> None:
        """ValueError for what `forward` does not do; null and false ask for nothing."""
        asked = {name: others.get(name, getattr(self.config, name, None)) for name in TRACED}
        for name, value in {**others, **asked}.items():
            if value is None or value is False:
                continue
            instead = (
                "stages.student.attention_trace.trace_attention gives attention and hidden states"
                if name in TRACED
                else "padding is known by the tokenizer's pad id, and a loss is the caller's"
            )
            got = value if isinstance(value, (bool, str)) else f"a {type(value).__name__}"
            raise BoxlessError(
                f"{name}: got {got}, expected only what StudentProcessor makes; {instead}"
            )

    def _checked(
        self, pixel_values: object, sizes_px: object, input_ids: object
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The inputs; ValueError on what can be seen without waiting for a GPU."""
        checked = []
        for name, value, shape in (
            ("pixel_values", pixel_values, "[N, 3, H, W]"),
            ("sizes_px", sizes_px, "[N, 2]"),
            ("input_ids", input_ids, "[B, T]"),
        ):
            if not isinstance(value, torch.Tensor) or value.ndim != shape.count(",") + 1:
                got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise BoxlessError(
                    f"{name}: got {got}, expected a tensor {shape}, as StudentProcessor makes it"
                )
            checked.append(value)
        pixels, sizes, tokens = checked
        num_pictures, num_texts = len(pixels), len(tokens)
        if num_texts == 0 or num_pictures not in (1, num_texts):
            raise BoxlessError(
                f"got {num_pictures} pictures and {num_texts} texts, expected one picture, or one "
                "for each text; `encode_image` and `fuse` take any pairing"
            )
        longest = self.embeddings.position_ids.shape[1]
        if tokens.shape[1] > longest:
            raise BoxlessError(
                f"input_ids: got {tokens.shape[1]} word pieces, expected at most {longest}; "
                "StudentProcessor cuts texts to max_tokens"
            )
        return pixels, sizes, tokens

    def encode_image(
        self,
        pixel_values: torch.Tensor,
        sizes_px: torch.Tensor,
        *,
        num_texts: torch.Tensor | None = None,
        maps: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        fills_canvas: bool | None = None,
    ) -> Cells:
        """Run the CNN: pixel_values [N, 3, H, W] and each picture's height, width [N, 2] -> cells.

        pixel_values: uint8, normalised here on the device, or floats that are normalised already.
        num_texts [N]: how many texts each picture is paired with (0: it does not count), where the
        visual dictionary learns from them; None where it does not learn. maps: what `encode_maps`
        gave for the pictures before; None to run the CNN. features: what `grid.cells_of` gave for
        those maps. fills_canvas: whether every picture fills the tensor, up to whole cells; None to
        find out, which synchronises with the GPU.
        """
        soho = self.neck.config if self.neck else None
        if maps is not None:
            features = self.grid.cells_of(maps.to(self.dtype))
        elif features is None:
            features = self.grid(*self._pictures(pixel_values, sizes_px), fills_canvas)
        rows, columns = features.shape[1:3]
        if soho and soho.width_mask == "height":
            inside = cells_inside_released(sizes_px, rows, columns, pixel_values.shape[2])
        else:
            grid = self.grid
            inside = cells_inside(sizes_px, rows, columns, cell_px=grid.cell_px, pad_px=grid.pad_px)
        if self.neck is None:
            return Cells(features=features.flatten(1, 2), inside=inside, rows=rows, columns=columns)
        mixed, codes = self.neck(features, inside, num_texts)
        return Cells(features=mixed, inside=inside, rows=rows, columns=columns, codes=codes)

    def encode_maps(self, pixel_values: torch.Tensor, sizes_px: torch.Tensor) -> torch.Tensor:
        """What the CNN makes of pictures as in `encode_image`, before the projection to cells:
        [N, X, R, S]."""
        return self.grid.maps(*self._pictures(pixel_values, sizes_px))

    def _pictures(
        self, pixel_values: torch.Tensor, sizes_px: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The grid's inputs: normalised pixel_values, and sizes where padding is to stay blank."""
        soho = self.neck.config if self.neck else None
        if pixel_values.dtype == torch.uint8:
            pixel_values = normalise(pixel_values, sizes_px)
        is_blank = soho is None or soho.keep_padding_blank
        return pixel_values.to(self.dtype), sizes_px if is_blank else None

    def fuse(
        self,
        cells: Cells,
        *,
        picture: torch.Tensor,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        masked_cells: torch.Tensor | None = None,
        output_mask: torch.Tensor | OutputPlaces | None = None,
    ) -> Hidden:
        """Run the Transformer over pairs.

        `picture` [B] says which picture each pair looks at (the CNN runs once a picture however
        many texts look at it); `input_ids` [B, T], padded with the tokenizer's pad id;
        `token_type_ids` [B, T] as in `stages.student.text.token_types`, all 0 if None;
        `masked_cells` bool [B, C]: these cells are replaced by the visual mask embedding;
        `output_mask` bool [B, T + C], or its places: the outputs that are needed, all others are
        zeros and cost nothing in the last layer (None: all).
        """
        features = cells.features[picture]
        if masked_cells is not None:
            features = torch.where(masked_cells[..., None], self.visual_mask_embedding, features)
        seen = self._placed(features, cells, picture)
        hidden = torch.cat([self.embeddings(input_ids, token_type_ids), seen], dim=1)
        attended = torch.cat([input_ids != self.pad_id, cells.inside[picture]], dim=1)
        hidden = self._through_layers(hidden, attended[:, None, None, :], output_mask)
        return Hidden(text=hidden[:, : input_ids.shape[1]], cells=hidden[:, input_ids.shape[1] :])

    def match(
        self, cells: Cells, *, picture: torch.Tensor, input_ids: torch.Tensor
    ) -> torch.Tensor:
        """The matching head's logits [B, 2] of texts [B, T], each on its picture [B], as in `fuse`.
        The last layer gives [CLS] alone."""
        if len(cells.features) == 1 and self.can_match_inputs:
            return self.match_inputs(self.inputs_of_texts(input_ids), self.inputs_of_picture(cells))
        first = OutputPlaces.of_first(len(input_ids), input_ids.device)
        hidden = self.fuse(cells, picture=picture, input_ids=input_ids, output_mask=first)
        return self.itm_head(hidden.text[:, 0])

    @property
    def can_match_inputs(self) -> bool:
        """Whether `match_inputs` is for this network: in evaluation mode, with several layers,
        whose weights are not partitioned (under ZeRO 3 they are empty until a layer is called)."""
        return (
            len(self.fusion.layer) > 1
            and not self.training
            and all(weight.numel() for weight in self.fusion.layer.parameters())
        )

    def match_inputs(self, texts: FirstInputs, picture: FirstInputs) -> torch.Tensor:
        """`match` of texts with one picture, each prepared once by `inputs_of_texts` and
        `inputs_of_picture`: [B, 2]."""
        return self.itm_head(first_outputs(self.fusion.layer, texts, picture))

    def inputs_of_texts(self, input_ids: torch.Tensor) -> FirstInputs:
        """What the fusion makes of texts [B, T] before it sees a picture."""
        embedded = self.embeddings(input_ids)
        return FirstInputs.of(self.fusion.layer[0], embedded, input_ids != self.pad_id)

    def inputs_of_picture(self, cells: Cells) -> FirstInputs:
        """What the fusion makes of one picture's cells before it sees a text."""
        only = torch.zeros(1, dtype=torch.long)
        seen = self._placed(cells.features, cells, only.to(cells.inside.device))
        return FirstInputs.of(self.fusion.layer[0], seen, cells.inside)

    def embed_pictures(self, cells: Cells) -> torch.Tensor:
        """The contrastive head's unit vectors of pictures: [N, E]. Raises ValueError without it."""
        return self._contrastive().embed_pictures(cells.features, cells.inside)

    def encode_texts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Texts [B, T] through the Transformer alone, without cells: the outputs of the layers in
        `config.itc_text_layers` side by side, [B, T, L x D], zeros at padding. The last D are the
        last layer's."""
        return encode_texts(
            self.embeddings,
            self.fusion,
            input_ids,
            input_ids != self.pad_id,
            self.config.itc_text_layers,
        )

    def last_layer(self, encoded: torch.Tensor) -> torch.Tensor:
        """The last layer's part [B, T, D] of what `encode_texts` gives [B, T, L x D]."""
        return encoded[..., -self.fusion.config.hidden_size :]

    def embed_texts(
        self, input_ids: torch.Tensor, encoded: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The contrastive head's unit vectors of texts [B, T], from `encode_texts` of them (None:
        it is called): [B, E]. Raises ValueError without the head."""
        head = self._contrastive()
        encoded = self.encode_texts(input_ids) if encoded is None else encoded
        return head.embed_texts(encoded, input_ids != self.pad_id)

    def align(self, cells: Cells, *, picture: torch.Tensor, input_ids: torch.Tensor) -> Hidden:
        """What phrases and cells are compared in, by `pra_level`, of pairs as in `fuse`."""
        if self.config.pra_level == "fusion":
            return self.fuse(cells, picture=picture, input_ids=input_ids)
        return Hidden(
            text=self.last_layer(self.encode_texts(input_ids)), cells=cells.features[picture]
        )

    def compare(self, texts: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Cosines of unit vectors [B, E] and [N, E] over the learned temperature: [B, N]."""
        return self._contrastive().compare(texts, pictures)

    def compare_without_hubs(self, texts: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """`compare`, normalised by the bank of training pairs where there is one: [B, N]. For
        ranking in retrieval; how near a text is to pictures in general no longer counts."""
        return self._contrastive().compare_without_hubs(texts, pictures)

    def _contrastive(self) -> ContrastiveHead:
        if self.contrastive_head is None:
            raise BoxlessError(
                "got a student without a contrastive head, expected one; pretrain with "
                "student.itc_size above 0 and pretrain.itc.weight above 0"
            )
        return self.contrastive_head

    def _through_layers(
        self,
        hidden: torch.Tensor,
        attended: torch.Tensor,
        output_mask: torch.Tensor | OutputPlaces | None,
    ) -> torch.Tensor:
        if output_mask is None:
            return self.fusion(hidden, attention_mask=attended).last_hidden_state
        if isinstance(output_mask, torch.Tensor):
            output_mask = OutputPlaces.of(output_mask)
        *layers, last = self.fusion.layer
        for layer in layers:
            hidden = layer(hidden, attended)
        return run_last_layer(last, hidden, attended, output_mask)

    def _placed(self, features: torch.Tensor, cells: Cells, picture: torch.Tensor) -> torch.Tensor:
        """features [B, C, D] with their positions, as they enter the Transformer: [B, C, D]."""
        if self.neck:
            inside = cells.inside.view(-1, cells.rows, cells.columns)
            positions = padding_aware_positions(inside, features.shape[-1])[picture]
            return self.cell_norm(features + positions.to(features))
        size = features.shape[-1]
        positions = sine_positions(cells.rows, cells.columns, size, features.device)
        image_type = self.embeddings.token_type_embeddings.weight[IMAGE_TOKEN_TYPE]
        seen = self.cell_norm(features + positions.to(features) + image_type)
        return self.cell_dropout(seen)

    def pool_phrases(self, pieces: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """A vector a phrase, from its pieces bool [B, P, T] and the fusion's text [B, T, D]:
        [B, P, D]; zeros for a phrase without pieces."""
        if self.config.phrase_pooling == "last":
            is_later = pieces.flip(-1).cumsum(dim=-1).flip(-1)  # 1 at the last piece, then more
            pieces = pieces & (is_later == 1)
        return weighted_mean(pieces, text)

    @property
    def pad_id(self) -> int:
        """The word piece that stands for nothing."""
        return self.embeddings.word_embeddings.padding_idx


def register_auto() -> None:
    """Let transformers' AutoConfig and AutoModel read student folders, until the process ends."""
    AutoConfig.register(StudentNetConfig.model_type, StudentNetConfig, exist_ok=True)
    AutoModel.register(StudentNetConfig, Student, exist_ok=True)
