//! Reading: find each piece of the request, then move all pieces at once.
//!
//!   request -> pieces (consecutive guest bytes from one place) -> I/O of all pieces together
//!
//! Host-adjacent pieces become one I/O. A request that lies in one piece, the common case,
//! allocates nothing and, where the storage answers inline, awaits nothing.

use std::sync::Arc;

use cowl_format::{ByteCount, GuestOffset, HostOffset};
use cowl_storage::{IoBuffer, IoResult, Purpose, Storage};
use futures_util::future::try_join_all;

use crate::cache::{DecodedCluster, DecodedKey};
use crate::image::Found;
use crate::mapping::RunKind;
use crate::request::Pin;
use crate::{Error, Image, host};

/// Where the bytes of a piece come from.
enum Source<'a, S: Storage> {
    /// Nowhere: zeros.
    Zero,
    /// A host file.
    Host { file: &'a Arc<S>, at: HostOffset, purpose: Purpose },
    /// A compressed cluster of layer `depth`, from byte `skip` on.
    Compressed { depth: usize, key: DecodedKey, skip: usize },
    /// The raw image at the bottom of the chain.
    Base { at: GuestOffset },
}

/// Consecutive guest bytes from one place.
struct Piece<'a, S: Storage> {
    length: usize,
    source: Source<'a, S>,
}

impl<S: Storage> Piece<'_, S> {
    /// Whether `next` continues this piece in the same file, so that one I/O serves both.
    fn is_continued_by(&self, next: &Self) -> bool {
        let length = ByteCount::from_usize(self.length);
        match (&self.source, &next.source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Host { file, at, .. }, Source::Host { file: other, at: next, .. }) => {
                Arc::ptr_eq(file, other) && *at + length == *next
            }
            (Source::Base { at }, Source::Base { at: next }) => *at + length == *next,
            _ => false,
        }
    }
}

/// Bytes of a request that lie in one place of a host file. They stay there while this is held.
pub struct HostPlace<'a, S: Storage> {
    file: &'a S,
    at: HostOffset,
    length: usize,
    purpose: Purpose,
    _pin: Option<Pin<'a>>,
}

impl<S: Storage> HostPlace<'_, S> {
    /// Fills `buffer`, which is as long as the place, by a request to the driver of the file.
    #[inline]
    pub fn read(&self, buffer: IoBuffer) -> impl Future<Output = IoResult<ByteCount>> {
        assert!(buffer.len() == self.length, "what lies beyond is not of this place");
        self.file.read(self.at, buffer, self.purpose)
    }
}

impl<S: Storage> Image<S> {
    /// Fills `buffer` from guest offset `at`.
    ///
    /// Any offset and length within the disk; none needs alignment. After an error the buffer's
    /// content is unspecified. Dropping the future abandons the read.
    pub async fn read_into(&self, at: GuestOffset, buffer: &mut [u8]) -> Result<(), Error> {
        // First: whoever makes the disk smaller waits for those who saw its old size.
        let _pin = self.pin();
        self.check_range(at, ByteCount::from_usize(buffer.len()))?;
        self.read_unchecked(at, buffer).await
    }

    /// The same for who holds a pin and has looked at the disk's size with it: a disk that shrinks
    /// meanwhile keeps what lay on it until the pin is dropped.
    pub(super) async fn read_unchecked(
        &self,
        at: GuestOffset,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        if buffer.is_empty() {
            return Ok(());
        }
        let first = match self.piece_now(at, buffer.len())? {
            Some(piece) => piece,
            None => Box::pin(self.piece(at, buffer.len())).await?,
        };
        self.fill_from(at, first, buffer).await
    }

    /// Fills `buffer` from guest offset `at`, where it begins with `first`.
    async fn fill_from<'a>(
        &'a self,
        at: GuestOffset,
        first: Piece<'a, S>,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        if first.length == buffer.len() {
            return self.fill(first.source, buffer).await;
        }
        // Boxed, as all that is seldom or far from free: a read is moved about often.
        Box::pin(self.read_pieces(at, first, buffer)).await
    }

    /// As [`read_into`](Self::read_into), if there is nothing to wait for, neither a table nor the
    /// host, and one place has all the bytes. `None` otherwise, and at once where the storage
    /// neither answers inline nor goes through a cache; `buffer` is unspecified then too.
    pub fn read_now(&self, at: GuestOffset, buffer: &mut [u8]) -> Option<Result<(), Error>> {
        if !self.may_answer_now() {
            return None;
        }
        let _pin = self.pin();
        if let Err(error) = self.check_range(at, ByteCount::from_usize(buffer.len())) {
            return Some(Err(error));
        }
        if buffer.is_empty() {
            return Some(Ok(()));
        }
        let piece = match self.piece_now(at, buffer.len()) {
            Ok(piece) => piece?,
            Err(error) => return Some(Err(error)),
        };
        if piece.length != buffer.len() {
            return None;
        }
        match piece.source {
            Source::Zero => buffer.fill(0),
            Source::Host { file, at, purpose } => {
                return file.try_read(at, buffer, purpose).map(|read| Ok(read.map(drop)?));
            }
            Source::Compressed { depth, key, skip } => {
                self.fill_if_decoded(depth, key, skip, buffer)?;
            }
            Source::Base { .. } => return None,
        }
        Some(Ok(()))
    }

    /// Fills `buffer`, which the request owns, from guest offset `at`: without copying when the
    /// bytes lie in one place of a host file.
    pub async fn read(
        &self,
        at: GuestOffset,
        mut buffer: IoBuffer,
    ) -> (Result<(), Error>, IoBuffer) {
        if let Some(result) = self.read_now(at, &mut buffer) {
            return (result, buffer);
        }
        match self.host_place(at, buffer.len()) {
            Some(place) => {
                let (result, buffer) = place.read(buffer).await;
                (result.map(drop).map_err(Error::from), buffer)
            }
            None => Box::pin(self.read_waiting(at, buffer)).await,
        }
    }

    /// The place of `length` bytes from `at`, if a host file has all of them in one place, and that
    /// is known without waiting.
    ///
    /// For those who have tried [`read_now`](Self::read_now), which has asked the host already: a
    /// read of the place goes to the host's driver at once.
    #[inline(always)]
    pub fn host_place(&self, at: GuestOffset, length: usize) -> Option<HostPlace<'_, S>> {
        let pin = self.pin();
        self.check_range(at, ByteCount::from_usize(length)).ok()?;
        if length == 0 {
            return None;
        }
        match self.piece_now(at, length) {
            Ok(Some(Piece { length: whole, source: Source::Host { file, at, purpose } }))
                if whole == length =>
            {
                Some(HostPlace { file, at, length, purpose, _pin: pin })
            }
            // Errors are told by those who wait.
            _ => None,
        }
    }

    /// As [`read`](Self::read), for those who have tried [`read_now`](Self::read_now) and
    /// [`host_place`](Self::host_place).
    pub async fn read_waiting(
        &self,
        at: GuestOffset,
        mut buffer: IoBuffer,
    ) -> (Result<(), Error>, IoBuffer) {
        let _pin = self.pin();
        let length = buffer.len();
        if let Err(error) = self.check_range(at, ByteCount::from_usize(length)) {
            return (Err(error), buffer);
        }
        if length == 0 {
            return (Ok(()), buffer);
        }
        match self.piece(at, length).await {
            Err(error) => (Err(error), buffer),
            // Nobody has asked the host: the table was not there.
            Ok(Piece { length: whole, source: Source::Host { file, at, purpose } })
                if whole == length =>
            {
                let (result, buffer) = host::read(file.as_ref(), at, buffer, purpose).await;
                (result.map(drop).map_err(Error::from), buffer)
            }
            Ok(piece) => {
                let result = self.fill_from(at, piece, &mut buffer).await;
                (result, buffer)
            }
        }
    }

    /// Fills `buffer` from several places at once.
    async fn read_pieces<'a>(
        &'a self,
        at: GuestOffset,
        first: Piece<'a, S>,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let pieces = self.pieces(at, first, buffer.len()).await?;
        let mut rest = buffer;
        let fills = pieces.into_iter().map(|piece| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(piece.length);
            rest = tail;
            self.fill(piece.source, head)
        });
        try_join_all(fills).await?;
        Ok(())
    }

    /// Keeps host clusters from being reused while the request reads them, where they can be.
    fn pin(&self) -> Option<Pin<'_>> {
        self.top().writer().ok().map(|writer| writer.epochs.enter())
    }

    async fn pieces<'a>(
        &'a self,
        at: GuestOffset,
        first: Piece<'a, S>,
        length: usize,
    ) -> Result<Vec<Piece<'a, S>>, Error> {
        let mut done = first.length;
        let mut pieces = vec![first];
        while done < length {
            let next_at = at + ByteCount::from_usize(done);
            let next = self.piece(next_at, length - done).await?;
            done += next.length;
            match pieces.last_mut() {
                Some(last) if last.is_continued_by(&next) => last.length += next.length,
                _ => pieces.push(next),
            }
        }
        assert!(done == length);
        Ok(pieces)
    }

    /// The piece at `at`, at most `length_max` bytes.
    async fn piece(&self, at: GuestOffset, length_max: usize) -> Result<Piece<'_, S>, Error> {
        let found = self.find_bytes(at, ByteCount::from_usize(length_max)).await?;
        Ok(self.piece_of(at, &found))
    }

    /// The same; `None` where a table has to be loaded first.
    #[inline(always)]
    fn piece_now(&self, at: GuestOffset, length_max: usize) -> Result<Option<Piece<'_, S>>, Error> {
        let found = self.find_bytes_now(at, ByteCount::from_usize(length_max))?;
        Ok(found.map(|found| self.piece_of(at, &found)))
    }

    #[inline(always)]
    fn piece_of(&self, at: GuestOffset, found: &Found) -> Piece<'_, S> {
        let length = found.length.as_usize();
        let depth = found.depth;
        let Some(kind) = found.kind else {
            return Piece { length, source: Source::Base { at } };
        };
        let source = match kind {
            RunKind::Unallocated { .. } | RunKind::Zero { .. } => Source::Zero,
            RunKind::Data { host } => Source::Host {
                file: self.layers()[depth].data_file(),
                at: host,
                purpose: if depth == 0 { Purpose::GuestData } else { Purpose::BackingData },
            },
            RunKind::Compressed { descriptor, skip } => {
                let guest = GuestOffset::new(at.get() - skip.get());
                let skip = skip.as_usize();
                let key = DecodedKey { descriptor, guest, reach: skip + length };
                Source::Compressed { depth, key, skip }
            }
        };
        Piece { length, source }
    }

    async fn fill(&self, source: Source<'_, S>, buffer: &mut [u8]) -> Result<(), Error> {
        match source {
            Source::Zero => {
                buffer.fill(0);
                Ok(())
            }
            Source::Host { file, at, purpose } => {
                read_host(file.as_ref(), at, buffer, purpose).await
            }
            Source::Compressed { depth, key, skip } => {
                self.fill_decoded(depth, key, skip, buffer).await
            }
            Source::Base { at } => {
                let base = self.base().expect("a base piece comes from the base");
                base.read_into(at, buffer).await.map_err(|error| Error::Backing(Box::new(error)))
            }
        }
    }

    async fn fill_decoded(
        &self,
        depth: usize,
        key: DecodedKey,
        skip: usize,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        if self.fill_if_decoded(depth, key, skip, buffer).is_none() {
            let cache = self.layers()[depth].decoded();
            let cluster = Box::pin(cache.get_or_insert(key)).await?;
            let range = skip..skip + buffer.len();
            match cluster.bytes(range.clone()) {
                Some(bytes) => buffer.copy_from_slice(bytes),
                None => {
                    let complete = Box::pin(cache.backend().complete(key, &cluster));
                    let (whole, has_grown) = complete.await?;
                    buffer.copy_from_slice(&whole[range]);
                    if has_grown {
                        cache.grown();
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills `buffer` from a cluster that is in memory decoded; `None` when it is not.
    fn fill_if_decoded(
        &self,
        depth: usize,
        key: DecodedKey,
        skip: usize,
        buffer: &mut [u8],
    ) -> Option<()> {
        let range = skip..skip + buffer.len();
        let copy = |cluster: &DecodedCluster| {
            cluster.bytes(range).map(|bytes| buffer.copy_from_slice(bytes))
        };
        self.layers()[depth].decoded().peek(key, copy)?
    }
}

/// Reads straight into `buffer` where the storage answers inline, through an owned buffer
/// otherwise.
async fn read_host<S: Storage>(
    file: &S,
    at: HostOffset,
    buffer: &mut [u8],
    purpose: Purpose,
) -> Result<(), Error> {
    if let Some(result) = file.try_read(at, buffer, purpose) {
        return result.map(drop).map_err(Error::from);
    }
    let (result, owned) = file.read(at, IoBuffer::for_requests(buffer.len()), purpose).await;
    result?;
    buffer.copy_from_slice(&owned);
    Ok(())
}
