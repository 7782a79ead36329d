/// Largest gRPC message that either side sends or accepts. Bulk data travels in streams of smaller pieces.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Size of the pieces in which artifacts travel.
pub const UPLOAD_CHUNK_BYTES: usize = 1024 * 1024;
