use std::path::Path;
use tokio::io::AsyncWrite;
#[derive(Debug, Clone)]
pub struct Command {
    pub name: String,
    pub enabled: bool,
    pub success_response: bool,
}
#[derive(Debug, thiserror::Error)]
#[error("no relay")]
pub struct Failed;
pub struct Relay;
impl Relay {
    pub fn new(_: &Path) -> Relay {
        Relay
    }
    pub async fn commands(&mut self) -> &[Command] {
        &[]
    }
    pub fn known(&self) -> &[Command] {
        &[]
    }
    pub async fn pass<W: AsyncWrite + Unpin>(&mut self, _: &[u8], _: bool, _: &mut W) -> Result<(), Failed> {
        Err(Failed)
    }
}
