//! Which entry of a table was used longest ago: a list of their indices through one array, the last used first.
//! Everything is O(1), and the array grows with the table.
#![forbid(unsafe_code)]

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    newer: u32,
    older: u32,
}

#[derive(Debug)]
pub struct Recency {
    links: Vec<Link>,
    newest: u32,
    oldest: u32,
    count: usize,
}

impl Recency {
    pub fn new() -> Self {
        Self { links: Vec::new(), newest: NONE, oldest: NONE, count: 0 }
    }

    /// `index`, which is not in the list, comes first.
    pub fn insert(&mut self, index: u32) {
        let at = index as usize;
        if self.links.len() <= at {
            self.links.resize(at + 1, Link { newer: NONE, older: NONE });
        }
        self.links[at] = Link { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = index,
            newest => self.links[newest as usize].newer = index,
        }
        self.newest = index;
        self.count += 1;
    }

    /// `index`, which is in the list, comes first.
    pub fn touch(&mut self, index: u32) {
        if self.newest != index {
            self.remove(index);
            self.insert(index);
        }
    }

    pub fn remove(&mut self, index: u32) {
        let Link { newer, older } = self.links[index as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        self.count -= 1;
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_what_was_not_touched() {
        let mut recency = Recency::new();
        assert_eq!(recency.oldest(), None);
        for index in [3, 0, 2, 1] {
            recency.insert(index);
        }
        for (touched, oldest) in [(1, 3), (3, 0), (3, 0), (0, 2), (2, 1)] {
            recency.touch(touched);
            assert_eq!((recency.oldest(), recency.len()), (Some(oldest), 4), "{touched}");
        }
        // Used since: 2, 0, 3; then, from the first on, 1.
        for (removed, oldest) in [(0, Some(1)), (1, Some(3)), (2, Some(3)), (3, None)] {
            let before = recency.len();
            recency.remove(removed);
            assert_eq!((recency.oldest(), recency.len()), (oldest, before - 1), "{removed}");
        }
        recency.insert(1);
        assert_eq!(recency.oldest(), Some(1));
    }
}
