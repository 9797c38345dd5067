//! The dispatches between the projections: rotation, the way into the rings, attention of a chunk and of one token.

use moa_mask::KvFormat;
use moa_shaders::{ELEMENT_THREADS, Kernel, KvTarget};

use crate::buffers::LayerCache;
use crate::program::Builder;
use crate::step::{Grid, Step};

impl Builder<'_, '_> {
    pub(crate) fn rope(
        &mut self,
        target: KvTarget,
        cache: &LayerCache,
        k_out: &wgpu::Buffer,
        v_out: &wgpu::Buffer,
    ) -> Step {
        let buffers = self.buffers;
        let shape = self.setup.heads();
        let units = (shape.heads + 2 * shape.kv_heads) * (shape.head_dim / 4);
        self.step(
            Kernel::Rope(target),
            Grid::Tokens(units.div_ceil(ELEMENT_THREADS)),
            &[
                ("state", &buffers.state),
                ("q", &buffers.q),
                ("k", &buffers.k),
                ("v", &buffers.v),
                ("table", &buffers.rope),
                ("k_out", k_out),
                ("v_out", v_out),
                ("spans", &cache.spans),
            ],
        )
    }

    /// Rotation and the way into the ring of the one token in flight; through the chunk scratch where it is rounded to
    /// bytes, which takes a whole row.
    pub(crate) fn rope_decode(&mut self, cache: &LayerCache) -> Vec<Step> {
        let buffers = self.buffers;
        match self.setup.kv_format() {
            KvFormat::Sixteen => vec![self.rope(KvTarget::Ring, cache, &cache.k, &cache.v)],
            KvFormat::Int8 => vec![
                self.rope(KvTarget::Chunk, cache, &buffers.k_chunk, &buffers.v_chunk),
                self.commit(cache),
            ],
        }
    }

    /// Into the chunk scratch, attention over ring and chunk, then the commit.
    pub(crate) fn attend_prefill(&mut self, cache: &LayerCache) -> Vec<Step> {
        let buffers = self.buffers;
        let shape = self.setup.heads();
        let format = self.setup.kv_format();
        let rope = self.rope(KvTarget::Chunk, cache, &buffers.k_chunk, &buffers.v_chunk);
        let attention = self.step(
            Kernel::AttentionPrefill(format),
            Grid::Attention {
                gqa_group: shape.gqa_group(),
                kv_heads: shape.kv_heads,
            },
            &[
                ("state", &buffers.state),
                ("q", &buffers.q),
                ("k_ring", &cache.k),
                ("v_ring", &cache.v),
                ("k_chunk", &buffers.k_chunk),
                ("v_chunk", &buffers.v_chunk),
                ("spans", &cache.spans),
                ("y", &buffers.attended),
            ],
        );
        vec![rope, attention, self.commit(cache)]
    }

    /// The chunk scratch into the rings.
    pub(crate) fn commit(&mut self, cache: &LayerCache) -> Step {
        let buffers = self.buffers;
        let shape = self.setup.heads();
        let format = self.setup.kv_format();
        let workgroups = match format {
            KvFormat::Sixteen => (shape.kv_heads * shape.head_dim / 4).div_ceil(ELEMENT_THREADS),
            KvFormat::Int8 => shape.kv_heads,
        };
        self.step(
            Kernel::KvCommit(format),
            Grid::Tokens(workgroups),
            &[
                ("state", &buffers.state),
                ("spans", &cache.spans),
                ("k_chunk", &buffers.k_chunk),
                ("v_chunk", &buffers.v_chunk),
                ("k_ring", &cache.k),
                ("v_ring", &cache.v),
            ],
        )
    }

    /// Attention over the ring in parts, and their joining; the results as codes, or as they are.
    pub(crate) fn attend_decode(&mut self, cache: &LayerCache, codes: bool) -> Vec<Step> {
        let buffers = self.buffers;
        let shape = self.setup.heads();
        let attention = self.step(
            Kernel::AttentionDecode(self.setup.kv_format()),
            Grid::Once(cache.item_count),
            &[
                ("state", &buffers.state),
                ("q", &buffers.q),
                ("k_ring", &cache.k),
                ("v_ring", &cache.v),
                ("items", &cache.items),
                ("partials", &buffers.partials),
            ],
        );
        let merge = self.step(
            Kernel::MergeLse { codes },
            Grid::Once(shape.heads * shape.head_dim / shape.merge_channels()),
            &[
                ("state", &buffers.state),
                ("partials", &buffers.partials),
                ("y", &buffers.attended),
                ("items", &cache.items),
                ("codes", &buffers.codes),
            ],
        );
        vec![attention, merge]
    }
}
