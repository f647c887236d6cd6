use std::path::Path;
pub struct Policy;
impl Policy {
    pub fn read(_: &Path) -> Policy {
        Policy
    }
    pub fn allows(&self, _: &str) -> bool {
        true
    }
}
