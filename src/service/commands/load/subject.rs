//! What each evaluator runs: the same spec, and bytes of its own unless `--same` is said.
//!
//! The same bytes are compiled once, and their code is held once, whoever asks. Evaluators that share them would so hide
//! from the measuring what builds cost. A custom section at the end makes them others, and changes nothing else.

use std::convert::Infallible;

use bytes::Bytes;

use super::super::read_input;
use crate::{
    Data, Plugin, Settings, Source, Spec,
    service::{Exit, cli::LoadArguments, greet},
};

/// Evaluators whose bytes take no more than this in sum keep them. Otherwise they are made at each build.
const MOST_KEPT: usize = 64 << 20;

pub(super) struct Subject {
    spec: Spec,
    bytes: Bytes,
    /// Whether evaluators share their bytes.
    same: bool,
    /// Whether they keep those of their own.
    kept: bool,
}

impl Subject {
    /// The subject and its input. A plugin that no evaluation could run is refused here, once.
    pub(super) async fn read(
        arguments: &LoadArguments,
        settings: &Settings,
        evaluators: usize,
    ) -> Result<(Self, Data), Exit> {
        let LoadArguments { same, ref options, .. } = *arguments;
        let input = arguments.input.clone().map(|input| read_input(input, settings.limits.input_size)).transpose()?;
        let input = input.map(|input| options.data(input));
        let (bytes, spec, input) = if arguments.plugin.is_none() && !options.has_manifest() {
            let spec = options.spec(Source::Bytes(greet::WASM), settings.limits.plugin_size)?;
            (greet::WASM, spec.entry_point(greet::NAME), input.unwrap_or_else(|| greet::INPUT.into()))
        } else {
            let (bytes, spec) = options.subject(arguments.plugin.as_deref(), &settings.limits).await?;
            let plugin = Plugin::new(bytes.clone(), spec.digest)?;
            let entry_point = plugin.interface().resolve(arguments.entry.as_deref())?;
            (bytes, spec.entry_point(entry_point), input.unwrap_or_default())
        };
        Ok((Self::new(spec, bytes, same, evaluators), input))
    }

    fn new(spec: Spec, bytes: Bytes, same: bool, evaluators: usize) -> Self {
        let kept = bytes.len().saturating_mul(evaluators) <= MOST_KEPT;
        Self { spec, bytes, same, kept }
    }

    /// The most bytes that one of its plugins has.
    pub(super) fn size(&self) -> u64 {
        let section = if self.same { 0 } else { 3 + usize::from(MOST_OF_A_NAME) };
        (self.bytes.len() + section) as u64
    }

    /// What the evaluator of this name runs.
    pub(super) fn spec(&self, name: &str) -> Spec {
        if self.same {
            return self.spec.clone();
        }
        let source = if self.kept {
            Source::bytes(own(&self.bytes, name))
        } else {
            let (bytes, name) = (self.bytes.clone(), name.to_owned());
            Source::from_fn(move || std::future::ready(Ok::<_, Infallible>(own(&bytes, &name))))
        };
        // The digest that was named is that of the bytes before.
        Spec { source, digest: None, ..self.spec.clone() }
    }
}

/// Bytes that the name of a section may have here, so that its size is one byte of LEB128.
const MOST_OF_A_NAME: u8 = 126;

/// The module, and behind it a custom section of this name.
fn own(bytes: &[u8], name: &str) -> Vec<u8> {
    let mut section = vec![0, 1, 0];
    for byte in name.bytes().take(MOST_OF_A_NAME.into()) {
        section.push(byte);
        section[1] += 1;
        section[2] += 1;
    }
    [bytes, &section].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_evaluator_has_a_plugin_of_its_own_whether_it_is_kept_or_made_at_need() {
        let spec = Spec::new(Source::Bytes(greet::WASM)).entry_point(greet::NAME);
        for evaluators in [2, 1_000_000] {
            let subject = Subject::new(spec.clone(), greet::WASM, false, evaluators);
            assert_eq!(subject.kept, evaluators == 2);
            let mut digests = Vec::new();
            for name in ["evaluator-1", "evaluator-2", "evaluator-1"] {
                let plugin = subject.spec(name).source.load(subject.size(), None).await.unwrap();
                assert!(plugin.interface().resolve(Some(greet::NAME)).is_ok());
                digests.push(plugin.digest());
            }
            assert_eq!(digests[0], digests[2]);
            assert!(digests[0] != digests[1] && digests[0] != crate::Digest::of(&greet::WASM));
        }
        let same = Subject::new(spec, greet::WASM, true, 1_000_000);
        assert_eq!(same.spec("evaluator-1").source.load(same.size(), None).await.unwrap().bytes(), &greet::WASM);
    }
}
