//! The sum of all maps. Its words stay where the workers wrote them: in the region.

use crate::map::Map;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use unmerged::Result;
use unmerged::mshare::Region;

/// A word, and how often it occurs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Total<'r> {
    pub(crate) word: &'r [u8],
    hash: u64,
    pub(crate) count: u64,
}

/// All words of all files.
#[derive(Debug, Default)]
pub(crate) struct Totals<'r> {
    table: HashTable<Total<'r>>,
    /// Words, each as often as it occurs.
    pub(crate) words: u64,
    /// Bytes of the files that were counted.
    pub(crate) bytes: u64,
}

impl<'r> Totals<'r> {
    /// Adds the words of a file, by the hashes that its map has.
    ///
    /// # Errors
    ///
    /// The map leads out of the region.
    pub(crate) fn merge(&mut self, map: &Map, region: &'r Region) -> Result<()> {
        for word in map.entries(region) {
            let word = word?;
            let same = |total: &Total<'_>| total.hash == word.hash && total.word == word.bytes;
            match self.table.entry(word.hash, same, |total| total.hash) {
                Entry::Occupied(mut total) => total.get_mut().count += u64::from(word.count),
                Entry::Vacant(place) => {
                    let (hash, count) = (word.hash, word.count.into());
                    place.insert(Total { word: word.bytes, hash, count });
                }
            }
        }
        self.words += map.words;
        self.bytes += map.bytes;
        Ok(())
    }

    /// How many different words there are.
    pub(crate) fn distinct(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Total<'r>> {
        self.table.iter()
    }

    /// The `k` most frequent words, and of one count the first in the alphabet.
    pub(crate) fn top(&self, k: usize) -> Vec<Total<'r>> {
        let mut all: Vec<_> = self.iter().copied().collect();
        let order = |a: &Total<'_>, b: &Total<'_>| b.count.cmp(&a.count).then(a.word.cmp(b.word));
        if k < all.len() {
            all.select_nth_unstable_by(k, order);
            all.truncate(k);
        }
        all.sort_unstable_by(order);
        all
    }
}
