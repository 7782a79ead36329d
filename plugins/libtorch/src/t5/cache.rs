//! Keys and values of decoded positions, of sequences that are all equally long.

use tch::{Device, Kind, Tensor};

use crate::engine::Result;

/// Shape of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of the decoder.
    pub layers: usize,
    /// Of this rank.
    pub heads: usize,
    /// Of a head.
    pub size: usize,
    /// Number format.
    pub kind: Kind,
    /// Where.
    pub device: Device,
}

impl Shape {
    /// Bytes that a sequence of `positions` positions takes.
    pub fn bytes(&self, positions: usize) -> usize {
        2 * self.layers * self.heads * self.size * positions * self.kind.elt_size_in_bytes()
    }
}

/// The cache: sequence `i` is in slot `i`.
pub struct Cache {
    shape: Shape,
    /// `(2 * layers, slots, heads, positions, size)`: keys and values of a layer are neighbours.
    stored: Tensor,
    /// Slots that there is memory for.
    slots: usize,
    /// Slots in use.
    pub rows: usize,
    /// Positions stored.
    pub length: usize,
}

impl Cache {
    /// Empty, for `rows` sequences of up to `positions` positions.
    pub fn new(shape: Shape, rows: usize, positions: usize) -> Result<Self> {
        let size = [2 * shape.layers, rows, shape.heads, positions, shape.size].map(|n| n as i64);
        let stored = Tensor::f_empty(size, (shape.kind, shape.device))?;
        Ok(Self { shape, stored, slots: rows, rows, length: 0 })
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.stored.numel() * self.shape.kind.elt_size_in_bytes()
    }

    /// Stores a layer's keys and values of the next position, `(rows, heads, 1, size)` each; returns those of all
    /// positions so far, `(rows, heads, length + 1, size)`.
    pub fn put(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let (rows, length) = (self.rows as i64, self.length as i64);
        let one = |which: usize, new: &Tensor| {
            let all = self.stored.f_select(0, (2 * layer + which) as i64)?.f_narrow(0, 0, rows)?;
            all.f_narrow(2, length, 1)?.f_copy_(new)?;
            all.f_narrow(2, 0, length + 1)
        };
        Ok((one(0, keys)?, one(1, values)?))
    }

    /// Ends a position: all layers have put theirs.
    pub fn advance(&mut self) {
        self.length += 1;
    }

    /// Makes sequence `i` go on from what was in slot `parents[i]`, with room for `positions` positions; returns each
    /// sequence's slot. Memory that is more than twice too large is given back.
    pub fn rearrange(&mut self, parents: &[usize], positions: usize) -> Result<Vec<usize>> {
        let rows = parents.len();
        let length = self.length as i64;
        let room = self.stored.size()[3] as usize;
        if rows > self.slots || positions > room || 2 * rows < self.slots {
            let mut next = Self::new(self.shape, rows, positions.max(room))?;
            let from = Tensor::f_from_slice(&indices(parents))?.f_to_device(self.shape.device)?;
            let kept = self.stored.f_narrow(3, 0, length)?.f_index_select(1, &from)?;
            next.stored.f_narrow(3, 0, length)?.f_copy_(&kept)?;
            next.length = self.length;
            *self = next;
            return Ok((0..rows).collect());
        }
        let slots = arrange(parents);
        let (to, from): (Vec<usize>, Vec<usize>) =
            slots.iter().zip(parents).filter(|(slot, parent)| slot != parent).unzip();
        if !to.is_empty() {
            let device = self.shape.device;
            let from = Tensor::f_from_slice(&indices(&from))?.f_to_device(device)?;
            let to = Tensor::f_from_slice(&indices(&to))?.f_to_device(device)?;
            let mut stored = self.stored.f_narrow(3, 0, length)?;
            let moved = stored.f_index_select(1, &from)?;
            let _ = stored.f_index_copy_(1, &to, &moved)?;
        }
        self.rows = rows;
        Ok(slots)
    }
}

fn indices(places: &[usize]) -> Vec<i64> {
    places.iter().map(|&place| place as i64).collect()
}

/// Slots below `parents.len()`, one for each sequence, so that as many as can be stay where their parent is.
fn arrange(parents: &[usize]) -> Vec<usize> {
    let mut slots: Vec<Option<usize>> = vec![None; parents.len()];
    let mut taken = vec![false; parents.len()];
    for (slot, &parent) in slots.iter_mut().zip(parents) {
        if parent < taken.len() && !taken[parent] {
            taken[parent] = true;
            *slot = Some(parent);
        }
    }
    let mut free = (0..taken.len()).filter(|&slot| !taken[slot]);
    slots.into_iter().map(|slot| slot.or_else(|| free.next()).expect("as many slots as sequences")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::random::{fold, mix};

    #[test]
    fn sequences_stay_where_they_can() {
        assert_eq!(arrange(&[0, 1, 2]), [0, 1, 2]);
        assert_eq!(arrange(&[0, 0, 3]), [0, 1, 2]);
        assert_eq!(arrange(&[4, 1, 0]), [2, 1, 0]);
        assert_eq!(arrange(&[]), [0; 0]);
    }

    #[test]
    fn a_sequence_keeps_its_positions_through_every_move() {
        let shape = Shape { layers: 2, heads: 1, size: 2, kind: Kind::Float, device: Device::Cpu };
        let mut cache = Cache::new(shape, 3, 1).expect("cache");
        // What each slot should hold: a number a position.
        let mut held: Vec<Vec<f32>> = vec![Vec::new(); 3];
        for step in 0..40_u64 {
            let new: Vec<f32> = (0..cache.rows as u64).map(|slot| (100 * step + slot) as f32).collect();
            for layer in 0..2 {
                let one = Tensor::from_slice(&new).view([-1, 1, 1, 1]).expand([-1, 1, 1, 2], false);
                let (keys, values) = cache.put(layer, &one, &(&one + 0.5)).expect("put");
                for (slot, held) in held.iter().enumerate() {
                    for (position, &number) in held.iter().chain([&new[slot]]).enumerate() {
                        let at = [slot as i64, 0, position as i64, 1];
                        assert_eq!(keys.double_value(&at), f64::from(number), "step {step}");
                        assert_eq!(values.double_value(&at), f64::from(number) + 0.5, "step {step}");
                    }
                }
            }
            cache.advance();
            held.iter_mut().zip(new).for_each(|(held, new)| held.push(new));
            let rows = fold(mix(7), step) % 9 + 1;
            let parents: Vec<usize> =
                (0..rows).map(|i| (fold(mix(step), i) % cache.rows as u64) as usize).collect();
            let slots = cache.rearrange(&parents, 41).expect("rearranged");
            let mut next = vec![Vec::new(); parents.len()];
            slots.iter().zip(&parents).for_each(|(&slot, &parent)| next[slot] = held[parent].clone());
            assert!(next.iter().all(|held| !held.is_empty()), "every slot is somebody's");
            held = next;
        }
    }
}
