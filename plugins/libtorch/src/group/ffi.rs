//! The C functions of `cpp/`, made safe.

use std::ffi::{CString, c_char, c_int, c_void};

use tch::Tensor;

use crate::shim::{Said, Text, owned, said};

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident),*) => {
        $($(#[$doc])* #[repr(C)] pub struct $name { _opaque: [u8; 0] })*
    };
}

opaque!(
    /// `CappyStore` of `cpp/shim.h`.
    RawStore,
    /// `CappyGroup`.
    RawGroup,
    /// `CappyWork`.
    RawWork,
    /// `CappyGradients` of `cpp/gradients.cpp`.
    RawGradients
);

type RawTensor = *mut c_void;

unsafe extern "C" {
    fn cappy_store_open(
        host: *const c_char,
        port: u16,
        server: c_int,
        listener: c_int,
        timeout_ms: i64,
        out: *mut *mut RawStore,
    ) -> Text;
    fn cappy_store_set(store: *mut RawStore, key: *const c_char, value: *const c_char) -> Text;
    fn cappy_store_check(store: *mut RawStore, key: *const c_char, there: *mut c_int) -> Text;
    fn cappy_store_get(store: *mut RawStore, key: *const c_char, value: *mut Text) -> Text;
    fn cappy_store_close(store: *mut RawStore);
    fn cappy_group_open(
        store: *mut RawStore,
        host: *const c_char,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
    ) -> Text;
    fn cappy_group_sever(group: *mut RawGroup) -> Text;
    fn cappy_group_sever_cuda(group: *mut RawGroup) -> Text;
    fn cappy_group_failed_cuda(group: *mut RawGroup) -> c_int;
    fn cappy_group_close(group: *mut RawGroup);
    fn cappy_group_all_reduce(group: *mut RawGroup, tensor: RawTensor, out: *mut *mut RawWork) -> Text;
    fn cappy_group_all_gather(
        group: *mut RawGroup,
        tensor: RawTensor,
        into: *const RawTensor,
        count: usize,
        out: *mut *mut RawWork,
    ) -> Text;
    fn cappy_group_broadcast(
        group: *mut RawGroup,
        tensor: RawTensor,
        root: c_int,
        out: *mut *mut RawWork,
    ) -> Text;
    fn cappy_work_order(work: *mut RawWork) -> Text;
    fn cappy_work_wait(work: *mut RawWork, timeout_ms: i64, done: *mut c_int) -> Text;
    fn cappy_work_free(work: *mut RawWork);
    fn cappy_gradients_open(
        group: *mut RawGroup,
        parameters: *const RawTensor,
        count: usize,
        order: *const usize,
        sizes: *const usize,
        buckets: usize,
        out: *mut *mut RawGradients,
    ) -> Text;
    fn cappy_gradients_arm(gradients: *mut RawGradients);
    fn cappy_gradients_reset(gradients: *mut RawGradients);
    fn cappy_gradients_flush(gradients: *mut RawGradients, sent: *mut usize) -> Text;
    fn cappy_gradients_work(gradients: *mut RawGradients, bucket: usize) -> *mut RawWork;
    fn cappy_gradients_take(gradients: *mut RawGradients, bucket: usize) -> Text;
    fn cappy_gradients_close(gradients: *mut RawGradients);
}

fn c_text(text: &str) -> Said<CString> {
    CString::new(text).map_err(|_| format!("`{}` has a zero byte", text.escape_debug()))
}

fn raw(tensor: &Tensor) -> RawTensor {
    tensor.as_ptr().cast_mut().cast()
}

/// Keys and values that rank 0 serves.
pub struct Store(*mut RawStore);

// SAFETY: a `TCPStore` guards its connection with a lock.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects; `listener` makes this process serve: on that socket, or on one that it opens itself.
    pub fn open(host: &str, port: u16, listener: Option<Option<i32>>, timeout_ms: i64) -> Said<Self> {
        let (host, mut store) = (c_text(host)?, std::ptr::null_mut());
        let (server, fd) = (c_int::from(listener.is_some()), listener.flatten().unwrap_or(-1));
        // SAFETY: the texts and the place for the result outlive the call.
        said(unsafe { cappy_store_open(host.as_ptr(), port, server, fd, timeout_ms, &mut store) })?;
        Ok(Self(store))
    }

    /// For another part of the shim.
    pub fn raw(&self) -> *mut RawStore {
        self.0
    }

    /// Writes a value.
    pub fn set(&self, key: &str, value: &str) -> Said<()> {
        let (key, value) = (c_text(key)?, c_text(value)?);
        // SAFETY: the store is open as long as `self` is there; texts outlive the call.
        said(unsafe { cappy_store_set(self.0, key.as_ptr(), value.as_ptr()) })
    }

    /// A value that may not be there yet. Does not wait.
    pub fn get(&self, key: &str) -> Said<Option<String>> {
        let (key, mut there, mut value) = (c_text(key)?, 0, std::ptr::null_mut());
        // SAFETY: as in `set`.
        said(unsafe { cappy_store_check(self.0, key.as_ptr(), &mut there) })?;
        if there == 0 {
            return Ok(None);
        }
        // SAFETY: as in `set`. Nobody deletes keys, so this does not wait.
        said(unsafe { cappy_store_get(self.0, key.as_ptr(), &mut value) })?;
        // SAFETY: just made by the shim.
        Ok(Some(unsafe { owned(value) }))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `open`, closed only here.
        unsafe { cappy_store_close(self.0) }
    }
}

/// The connections to all other ranks. Tensors of a GPU need NCCL's (`crate::cuda`).
pub struct Connections(*mut RawGroup);

// SAFETY: a process group belongs to no thread; that exchanges start one after the other, its owner sees to.
unsafe impl Send for Connections {}
// SAFETY: as above.
unsafe impl Sync for Connections {}

impl Connections {
    /// Connects to every other rank, who all do the same.
    pub fn open(store: &Store, host: &str, rank: usize, world: usize, timeout_ms: i64) -> Said<Self> {
        let (host, mut group) = (c_text(host)?, std::ptr::null_mut());
        let (rank, world) = (rank as c_int, world as c_int);
        // SAFETY: the store is open; what the group needs of it, it shares.
        said(unsafe { cappy_group_open(store.0, host.as_ptr(), rank, world, timeout_ms, &mut group) })?;
        Ok(Self(group))
    }

    /// For another part of the shim.
    pub fn raw(&self) -> *mut RawGroup {
        self.0
    }

    /// Closes the connections under exchanges that still go on.
    pub fn sever(&self) -> Said<()> {
        // SAFETY: the group is open as long as `self` is there.
        said(unsafe { cappy_group_sever(self.0) })
    }

    /// Ends exchanges on the GPU, and so whatever waits for them.
    pub fn sever_cuda(&self) -> Said<()> {
        // SAFETY: as in `sever`; the shim does it once, whoever asks.
        said(unsafe { cappy_group_sever_cuda(self.0) })
    }

    /// Whether NCCL has noticed that an exchange failed, or takes longer than the group's timeout.
    pub fn failed_cuda(&self) -> bool {
        // SAFETY: as in `sever`.
        unsafe { cappy_group_failed_cuda(self.0) != 0 }
    }

    /// Starts a sum in place.
    pub fn all_reduce(&self, tensor: &Tensor) -> Said<Work> {
        let mut work = std::ptr::null_mut();
        // SAFETY: the group is open, the tensor is one, and the work keeps what it needs.
        said(unsafe { cappy_group_all_reduce(self.0, raw(tensor), &mut work) })?;
        Ok(Work(work))
    }

    /// Starts to fetch `tensor` of each rank into `into`, one a rank, of its shape and kind.
    pub fn all_gather(&self, tensor: &Tensor, into: &[Tensor]) -> Said<Work> {
        let (places, mut work): (Vec<RawTensor>, _) = (into.iter().map(raw).collect(), std::ptr::null_mut());
        // SAFETY: as in `all_reduce`.
        said(unsafe {
            cappy_group_all_gather(self.0, raw(tensor), places.as_ptr(), places.len(), &mut work)
        })?;
        Ok(Work(work))
    }

    /// Starts to copy `tensor` of rank `root` to all.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Said<Work> {
        let mut work = std::ptr::null_mut();
        // SAFETY: as in `all_reduce`.
        said(unsafe { cappy_group_broadcast(self.0, raw(tensor), root as c_int, &mut work) })?;
        Ok(Work(work))
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // SAFETY: made by `open`, closed only here.
        unsafe { cappy_group_close(self.0) }
    }
}

/// An exchange on its way.
pub struct Work(*mut RawWork);

// SAFETY: a `c10d::Work` has its own lock and belongs to no thread.
unsafe impl Send for Work {}

impl Work {
    /// Lets what is computed next on the GPU come after the exchange, without waiting for it. Of tensors in the CPU's
    /// memory it says nothing.
    pub fn order(&self) -> Said<()> {
        // SAFETY: the work is there as long as `self` is.
        said(unsafe { cappy_work_order(self.0) })
    }

    /// Waits; false: the time was up first.
    pub fn wait(&self, timeout_ms: i64) -> Said<bool> {
        let mut done = 0;
        // SAFETY: the work is there as long as `self` is.
        said(unsafe { cappy_work_wait(self.0, timeout_ms, &mut done) })?;
        Ok(done != 0)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed only here. The exchange itself goes on.
        unsafe { cappy_work_free(self.0) }
    }
}

/// Parameters whose gradients are summed, and the hooks on them.
pub struct Buckets {
    raw: *mut RawGradients,
    count: usize,
}

// SAFETY: its state has a lock, and tensors belong to no thread.
unsafe impl Send for Buckets {}

impl Buckets {
    /// `order` lists the parameters' indices bucket after bucket, `sizes` how many each has.
    ///
    /// # Panics
    /// When `order` is no permutation of the parameters or the sizes do not add up to it.
    pub fn open(
        connections: &Connections,
        parameters: &[Tensor],
        order: &[usize],
        sizes: &[usize],
    ) -> Said<Self> {
        let mut seen = vec![false; parameters.len()];
        order.iter().for_each(|&i| assert!(!std::mem::replace(&mut seen[i], true), "{i} is listed twice"));
        assert!(
            seen.iter().all(|&s| s) && sizes.iter().sum::<usize>() == order.len(),
            "every parameter once"
        );
        assert!(sizes.iter().all(|&size| size > 0), "no bucket is empty");
        let places: Vec<RawTensor> = parameters.iter().map(raw).collect();
        let mut gradients = std::ptr::null_mut();
        // SAFETY: the lists outlive the call and fit each other; tensors and the process group are shared, not lent.
        said(unsafe {
            cappy_gradients_open(
                connections.0,
                places.as_ptr(),
                places.len(),
                order.as_ptr(),
                sizes.as_ptr(),
                sizes.len(),
                &mut gradients,
            )
        })?;
        Ok(Self { raw: gradients, count: sizes.len() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// From now on a bucket is sent when its last gradient arrives.
    pub fn arm(&mut self) {
        // SAFETY: open as long as `self` is there.
        unsafe { cappy_gradients_arm(self.raw) }
    }

    /// Forgets what was sent.
    pub fn reset(&mut self) {
        // SAFETY: as in `arm`.
        unsafe { cappy_gradients_reset(self.raw) }
    }

    /// Sends the rest; how many buckets had been sent before.
    pub fn flush(&mut self) -> Said<usize> {
        let mut sent = 0;
        // SAFETY: as in `arm`.
        said(unsafe { cappy_gradients_flush(self.raw, &mut sent) })?;
        Ok(sent)
    }

    /// The exchange of a bucket, after `flush`.
    pub fn work(&self, bucket: usize) -> Work {
        assert!(bucket < self.count);
        // SAFETY: as in `arm`; `flush` has sent every bucket.
        Work(unsafe { cappy_gradients_work(self.raw, bucket) })
    }

    /// Puts a bucket's sums in place, after its exchange.
    pub fn take(&mut self, bucket: usize) -> Said<()> {
        assert!(bucket < self.count);
        // SAFETY: as in `work`.
        said(unsafe { cappy_gradients_take(self.raw, bucket) })
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        // SAFETY: made by `open`, closed only here.
        unsafe { cappy_gradients_close(self.raw) }
    }
}
